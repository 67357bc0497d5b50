"""The Qwen-Image 2.1 autoencoder: images of four channels in, such images out, with the names of Wan 2.2.

Source: Wan-Video Wan2.2 `wan/modules/vae2_2.py` and diffusers `AutoencoderKLQwenImage21` (Apache-2.0), re-implemented:
Wan 2.2's network for images, whose convolutions keep an axis of frames, of length 1.
"""

from __future__ import annotations

from ..wan.unit_model import UnitVAE


class QwenImage21VAE(UnitVAE):
    """Of single images."""
