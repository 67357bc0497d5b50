"""Attention as a decade of files spelled it: names, shapes of weights and biases, in the middle and inside levels."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest
import torch
from exact_vae import load_vae
from exact_vae.tests.families.table import Row, hints, kl, levels, random_model
from exact_vae.vae_model.checkpoint.load import load_model
from exact_vae.vae_model.checkpoint.save import layouts_of, to_layout
from exact_vae.vae_model.errors import VAEFileError
from exact_vae.vae_model.families.table import decode_raw, encode_raw
from exact_vae.vae_model.families.video.model import VideoConfig
from torch import Tensor

pytestmark = pytest.mark.usefixtures("inference")

WITH_LEVELS = levels(8, 16, attn=(0, 1))
MODELS: dict[str, Row] = {
    "kl": Row("kl", kl(4, WITH_LEVELS), 4, 2),
    "vq": Row("vq", kl(3, WITH_LEVELS, double_z=False, codebook=16), 3, 2),
    "flux2": Row("flux2", kl(8, levels(8, 16), patch=2), 32, 4),
    "video": Row("video", VideoConfig(4, 4, WITH_LEVELS, levels(8, 16), num_groups=4, post_quant_conv=False), 4, 2),
}
SPELLINGS = {
    "q": ("norm", "q", "k", "v", "proj_out"),
    "to_q": ("group_norm", "to_q", "to_k", "to_v", "to_out.0"),
    "query": ("group_norm", "query", "key", "value", "proj_attn"),
    "to_q beside norm": ("norm", "to_q", "to_k", "to_v", "to_out.0"),
    "mixed": ("group_norm", "q", "to_k", "value", "to_out.0"),
}
ATTENTION = re.compile(r"(.*\.(?:attn_1|attn\.\d+|attentions\.\d+))\.(.+)\.(weight|bias)")
OURS = {name: number for names in SPELLINGS.values() for number, name in enumerate(names)}
WEIGHTS: dict[str, Any] = {
    "(C, C)": lambda t: t.flatten(1),
    "(C, C, 1)": lambda t: t.flatten(1)[..., None],
    "(C, C, 1, 1)": lambda t: t.flatten(1)[..., None, None],
    "(C, C, 1, 1, 1)": lambda t: t.flatten(1)[..., None, None, None],
}
BIASES: dict[str, Any] = {"(C,)": lambda t: t, "(C, 1)": lambda t: t[:, None], "(C, 1, 1)": lambda t: t[:, None, None]}


@cache
def reference(name: str) -> tuple[Any, Tensor, Tensor, Tensor, Tensor]:
    """(model, latents, what it decodes them to, images, what it encodes them to)."""
    row = MODELS[name]
    model = random_model(row)
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(1, row.channels, 2, 2, generator=generator)
    x = torch.rand(1, 3, 2 * row.factor, 2 * row.factor, generator=generator) * 2 - 1
    return model, z, decode_raw(model, z, 1 if name == "video" else None), x, encode_raw(model, x, row.channels)


def spelled(model: Any, layout: str, spelling: str, weights: str, biases: str) -> dict[str, Tensor]:
    """The model's tensors in that layout, its attention in those words and shapes."""
    state: dict[str, Tensor] = {}
    for key, tensor in to_layout(model, layout).items():
        match = ATTENTION.fullmatch(key)
        if match is not None and match[2] in OURS:
            key = f"{match[1]}.{SPELLINGS[spelling][OURS[match[2]]]}.{match[3]}"
            if match[3] == "bias":
                tensor = BIASES[biases](tensor)
            elif OURS[match[2]]:
                tensor = WEIGHTS[weights](tensor)
        state[key] = tensor
    return state


SHAPES = [("(C, C)", "(C,)"), ("(C, C, 1)", "(C, 1)"), ("(C, C, 1, 1)", "(C, 1, 1)"), ("(C, C, 1, 1, 1)", "(C,)")]
WORDS_AND_SHAPES = [("q", *shapes) for shapes in SHAPES]
WORDS_AND_SHAPES += [(words, *SHAPES[number % 4]) for number, words in enumerate(SPELLINGS) if words != "q"]


@pytest.mark.parametrize(("spelling", "weights", "biases"), WORDS_AND_SHAPES)
@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
@pytest.mark.parametrize("name", MODELS)
def test_every_spelling_is_the_same_model(name: str, layout: str, spelling: str, weights: str, biases: str) -> None:
    model, z, images, x, latents = reference(name)
    state = spelled(model, layout, spelling, weights, biases)
    assert sum(ATTENTION.fullmatch(key) is not None for key in state) >= (20 if name == "flux2" else 30)
    loaded = load_vae(state, dtype="float32", device="cpu", config=hints(MODELS[name].config))
    assert torch.equal(decode_raw(loaded.first_stage_model, z, 1 if name == "video" else None), images)
    assert torch.equal(encode_raw(loaded.first_stage_model, x, MODELS[name].channels), latents)


def test_halves_may_be_spelled_otherwise() -> None:
    """As where an encoder is of an old file and a decoder of a new one."""
    model, *_ = reference("kl")
    for layout in ("ldm", "diffusers"):
        old = spelled(model, layout, "query", "(C, C)", "(C,)")
        new = spelled(model, layout, "to_q", "(C, C, 1, 1)", "(C, 1, 1)")
        state = {key: tensor for key, tensor in old.items() if key.startswith("encoder.")}
        state |= {key: tensor for key, tensor in new.items() if not key.startswith("encoder.")}
        found = load_model(state, config=hints(MODELS["kl"].config)).model.state_dict()
        assert all(torch.equal(found[key], tensor) for key, tensor in model.state_dict().items())


def test_the_same_weight_under_two_names_is_refused() -> None:
    model, *_ = reference("kl")
    state = spelled(model, "ldm", "q", "(C, C)", "(C,)") | spelled(model, "ldm", "to_q", "(C, C)", "(C,)")
    with pytest.raises(VAEFileError, match=r"found unknown .*decoder\.mid\.attn_1\."):
        load_model(state, config=hints(MODELS["kl"].config))


def test_a_weight_of_another_shape_is_no_spelling() -> None:
    model, *_ = reference("kl")
    state = spelled(model, "ldm", "q", "(C, C, 1, 1)", "(C,)")
    state["decoder.mid.attn_1.q.weight"] = state["decoder.mid.attn_1.q.weight"].repeat(1, 1, 3, 3)
    with pytest.raises(VAEFileError, match=r"decoder\.mid\.attn_1\.q\.weight has shape \(16, 16, 3, 3\) instead of"):
        load_model(state, config=hints(MODELS["kl"].config))
    state = spelled(model, "ldm", "q", "(C, C, 1, 1)", "(C,)")
    state["decoder.mid.attn_1.q.bias"] = state["decoder.mid.attn_1.q.bias"][None]
    with pytest.raises(VAEFileError, match=r"decoder\.mid\.attn_1\.q\.bias has shape \(1, 16\) instead of \(16,\)"):
        load_model(state, config=hints(MODELS["kl"].config))


def test_what_is_written_has_each_layout_s_own_names() -> None:
    for name in MODELS:
        model = random_model(MODELS[name])
        for layout in layouts_of(model):
            written = {match[2] for match in map(ATTENTION.fullmatch, to_layout(model, layout)) if match}
            words = {"ldm": "q", "diffusers": "to_q", "diffusers-old": "query"}[layout]
            assert set(SPELLINGS[words]) <= written
