"""Layouts of the Qwen-Image 2.1 autoencoder's files.

The names of Wan 2.2 stand for this network where weights have one tap over the frames; diffusers stores no axis of
frames.
"""

from __future__ import annotations

from ..layout import Layout
from ..wan.unit_names import UNIT_DIFFUSERS_MARKS, UNIT_DIFFUSERS_RULES, UNIT_MARKS, UNIT_RULES, taps

WAN = Layout(
    "wan",
    "qwen_image_21",
    UNIT_MARKS,
    UNIT_RULES,
    unread="told",
    sides=lambda shapes: taps(shapes, "conv1") == {1},
    instead_of=("wan",),
)
DIFFUSERS = Layout(
    "diffusers",
    "qwen_image_21",
    UNIT_DIFFUSERS_MARKS,
    UNIT_DIFFUSERS_RULES,
    without_frames=True,
    sides=lambda shapes: taps(shapes, "conv_in") <= {0},
    instead_of=("wan",),
)
