"""The sound checkpoints that fuzzing damages: a narrow model of every family, with the names of each of its layouts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from exact_vae.tests.families.table import ROWS, Row, hints, kl, levels, random_model
from exact_vae.vae_model.checkpoint.save import layouts_of, to_layout
from exact_vae.vae_model.errors import InputError
from exact_vae.vae_model.families.ldm.config import LevelsConfig
from exact_vae.vae_model.families.table import FAMILIES
from exact_vae.vae_model.families.video.model import VideoConfig
from torch import Tensor

_VIDEO = VideoConfig(4, 4, levels(8, 16), levels(8, 16), num_groups=4, quant_conv=False, post_quant_conv=False)
_LINEAR = LevelsConfig(8, (8, 16), 1, attn_type="linear")
MODELS: dict[str, Row] = {
    **ROWS,
    "temporal decoder": Row("video", _VIDEO, 4, 2),
    "linear attention": Row("kl", kl(4, _LINEAR), 4, 2),
}


@dataclass(frozen=True, eq=False)
class Base:
    """One sound checkpoint, and what its names and shapes do not tell."""

    model: str
    layout: str
    tensors: Mapping[str, Tensor]
    settings: Mapping[str, str]

    @property
    def family(self) -> str:
        return MODELS[self.model].family


@cache
def random_weights(model: str) -> Any:
    return random_model(MODELS[model], seed=sorted(MODELS).index(model))


@cache
def make_base(model: str, layout: str) -> Base | None:
    """None where the layout has no place for the model's tensors."""
    weights = random_weights(model)
    if layout not in layouts_of(weights):
        return None
    try:
        tensors = to_layout(weights, layout)
    except InputError:
        return None
    settings = {key: str(value) for key, value in hints(MODELS[model].config).items()}
    return Base(model, layout, {key: tensor.contiguous() for key, tensor in tensors.items()}, settings)


CHOICES = [(name, layout.name) for name, row in MODELS.items() for layout in FAMILIES[row.family].layouts]
"""Every model with every layout of its family."""
