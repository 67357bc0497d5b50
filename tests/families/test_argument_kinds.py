"""Constructors and calls of networks with values of another kind: one line that names the argument."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from exact_vae import InputError, vae_model
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")

DD: dict[str, Any] = {
    "ch": 32,
    "out_ch": 3,
    "in_channels": 3,
    "ch_mult": (1, 2),
    "num_res_blocks": 1,
    "z_channels": 4,
    "resolution": 32,
}
UNET = {name: value for name, value in DD.items() if name != "z_channels"} | {"use_timestep": False}
TINY = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
TINY |= {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
MAKERS: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {
    "Encoder": (vae_model.Encoder, DD),
    "Decoder": (vae_model.Decoder, DD),
    "VideoDecoder": (vae_model.VideoDecoder, DD),
    "Model": (vae_model.Model, UNET),
    "AutoencoderTiny": (vae_model.AutoencoderTiny, TINY),
}
COUNT = "a whole number of at least 1"
COUNTS = ("32", 1.5, None, [32], 0, -4, True, float("nan"), torch.nn.ReLU())
WRONG: dict[str, tuple[str, tuple[Any, ...]]] = {
    **dict.fromkeys(("ch", "out_ch", "in_channels", "z_channels", "num_groups"), (COUNT, COUNTS)),
    "num_res_blocks": ("a whole number of at least 0", ("2", 1.5, None, [1, 1], -1)),
    "ch_mult": ("a sequence of positive numbers", (2, "12", None, (), ["1", 2], (1, 0), (1, None), {1: 2})),
    "attn_resolutions": ("a sequence of numbers", (16, "16", None, ["16"], (None,))),
    "resolution": ("a number of pixels", ("256", None, [32], 0, float("inf"))),
    "dropout": ("a number of 0..1", ("0.1", None, [0.1], 2, -0.5, float("nan"))),
    **dict.fromkeys(("resamp_with_conv", "use_linear_attn"), ("True or False", ("false", "yes", [True], 0.5, None, 2))),
    "double_z": ("True or False", ("false",)),
    "tanh_out": ("True or False", ("false",)),
    "resnet_op": ("a function or None", ("ResnetBlock", 5)),
    **dict.fromkeys(("out_channels", "latent_channels", "upsampling_scaling_factor"), (COUNT, COUNTS)),
    "encoder_block_out_channels": ("a sequence of whole numbers of at least 1 or None", (8, "88", (8, "8"), ())),
    "num_decoder_blocks": ("a sequence of whole numbers of at least 0", (8, "88", (1, "1"), None)),
    "latent_magnitude": ("a finite number that is not 0", ("3", None, [3], 0, 0.0)),
    "force_upcast": ("True or False", ("false",)),
}
OF = {
    **dict.fromkeys(MAKERS, ("in_channels",)),
    "Encoder": ("ch", "in_channels", "z_channels", "num_groups", "num_res_blocks", "ch_mult", "attn_resolutions",
                "resolution", "dropout", "resamp_with_conv", "use_linear_attn", "double_z"),
    "Decoder": ("ch", "out_ch", "in_channels", "z_channels", "num_groups", "num_res_blocks", "ch_mult",
                "attn_resolutions", "resolution", "dropout", "resamp_with_conv", "tanh_out", "resnet_op"),
    "VideoDecoder": ("ch", "ch_mult", "attn_resolutions"),
    "Model": ("ch", "out_ch", "in_channels", "num_groups", "num_res_blocks", "ch_mult", "attn_resolutions", "dropout"),
    "AutoencoderTiny": ("in_channels", "out_channels", "latent_channels", "upsampling_scaling_factor",
                        "encoder_block_out_channels", "num_decoder_blocks", "latent_magnitude", "force_upcast"),
}  # fmt: skip


def refused(call: Callable[[], object], *words: str) -> None:
    with pytest.raises(InputError, match=r"^[^\n]*: expected [^\n]*, got [^\n]*: [^\n]+$") as caught:
        call()
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(("owner", "name"), [(owner, name) for owner, names in OF.items() for name in names])
def test_arguments_of_another_kind(owner: str, name: str) -> None:
    make, right = MAKERS[owner]
    kind, values = WRONG[name]
    for value in values:
        refused(lambda: make(**{**right, name: value}), f"{owner}: {name}: expected {kind}, got ")  # noqa: B023


def test_all_that_is_wrong_is_told_at_once() -> None:
    line = (
        "Encoder: ch: expected a whole number of at least 1, got '32'; attn_resolutions: expected a sequence of "
        "numbers, got 16: correct them"
    )
    with pytest.raises(InputError, match=f"^{re.escape(line)}$"):
        vae_model.Encoder(**{**DD, "ch": "32", "attn_resolutions": 16})


def test_kinds_that_do_as_well() -> None:
    """Numbers of numpy and torch, lists, sets and arrays: what worked works."""
    others: dict[str, Any] = {
        "ch": np.int64(32),
        "ch_mult": [1, Fraction(2)],
        "attn_resolutions": {16},
        "resolution": 32.0,
        "num_res_blocks": torch.tensor(1),
        "double_z": np.True_,
        "dropout": np.float32(0),
    }
    torch.manual_seed(0)
    right = vae_model.Encoder(**{**DD, "attn_resolutions": (16,)})
    other = vae_model.Encoder(**{**DD, **others})
    other.load_state_dict(right.state_dict())
    x = torch.rand(1, 3, 16, 16)
    assert torch.equal(other(x), right(x))


def test_engines_and_averages() -> None:
    kl: Any = vae_model.AutoencoderKL
    ema: Any = vae_model.LitEma
    layer = nn.Linear(2, 2)
    for value in ("4", 4.5, None, 0):
        refused(lambda: kl(value, DD), "AutoencoderKL: embed_dim: expected a whole number of at least 1, got ")  # noqa: B023
    refused(lambda: kl(4, {**DD, "ch": "32"}), "Encoder: ch: expected a whole number of at least 1, got '32'")
    for value in ("2", 0, 1.5):
        refused(lambda: kl(4, DD, max_batch_size=value), "max_batch_size: expected a whole number of at least 1 or ")  # noqa: B023
    refused(lambda: kl(4, DD, sample_posterior="no"), "sample_posterior: expected True or False, got 'no'")
    for value in ("0.9", None, [0.9]):
        refused(lambda: ema(layer, decay=value), "LitEma: decay: expected a finite number, got ")  # noqa: B023
    refused(lambda: ema(layer, use_num_upates="no"), "LitEma: use_num_upates: expected True or False, got 'no'")
    average = ema(layer, decay=torch.tensor(0.5))
    for call in (ema, average, average.copy_to):
        refused(lambda: call({"a": 1}), "LitEma: model: expected a torch.nn.Module, got {'a': 1}")  # noqa: B023


def test_timesteps_and_context_of_the_unet() -> None:
    timed: Any = vae_model.Model(**{**UNET, "use_timestep": True}).eval()
    x = torch.rand(2, 3, 8, 8)
    for t in (torch.ones(3), torch.ones(0), torch.ones(3, 1), torch.tensor(1.0), 5, [1, 2]):
        refused(lambda: timed(x, t), "Model: expected timesteps (2,), one per image, got ")  # noqa: B023
    refused(lambda: timed(x), "Model: expected timesteps, got none")
    refused(
        lambda: timed(x, torch.ones(2, 1)), "timesteps: expected one dimension, got shape (2, 1): give one per image"
    )
    with torch.no_grad():
        torch.testing.assert_close(timed(x, torch.ones(1)), timed(x, torch.ones(2)), rtol=0, atol=1e-5)
        plain: Any = vae_model.Model(**{**UNET, "in_channels": 5}).eval()
        context = torch.rand(2, 2, 8, 8)
        assert torch.equal(plain(x, context=context), plain(torch.cat([x, context], 1)))
    line = "Model: expected a context (B, C, H, W) with the batch and sides of x, got "
    for wrong in (context[:1], context[..., :4], context[0]):
        refused(lambda: plain(x, context=wrong), line)  # noqa: B023
    refused(lambda: plain(x, context=5), "Model: expected a tensor (B, C, H, W) as context, got int")
    refused(lambda: plain(None), "Model: expected a tensor (B, C, H, W) as x, got NoneType")


@pytest.mark.parametrize("with_conv", [True, False])
def test_images_too_small_for_an_encoder(with_conv: bool) -> None:
    seven = {"ch_mult": (1,) * 7, "resolution": 256, "resamp_with_conv": with_conv}
    encoder = vae_model.Encoder(**{**DD, **seven}).eval()
    engine: Any = vae_model.AutoencoderKL(4, {**DD, **seven}).eval()
    for height, width in ((32, 32), (64, 63), (1, 1), (0, 64)):
        line = f"Encoder: expected sides of at least 64, got {width} x {height}: enlarge the image"
        for call in (encoder, engine.encode):
            refused(lambda: call(torch.rand(1, 3, height, width)), line)  # noqa: B023
    with torch.no_grad():
        assert encoder(torch.rand(1, 3, 64, 128)).shape == (1, 8, 1, 2)
    refused(
        lambda: vae_model.Downsample(4, with_conv)(torch.rand(1, 4, 1, 8)), "Downsample: expected sides of at least 2"
    )


@pytest.mark.parametrize(("name", "strict"), [("Encoder", False), ("Downsample", False), ("Downsample", True)])
def test_sides_are_still_free_in_an_export(name: str, strict: bool) -> None:
    """The check of sides leaves exports and traces as they were. Attention is not for strict exports."""
    encoder: nn.Module = vae_model.Encoder(**DD).eval() if name == "Encoder" else vae_model.Downsample(3)
    x = torch.rand(1, 3, 16, 16)
    sides = {2: torch.export.Dim("h", max=64) * 2, 3: torch.export.Dim("w", max=64) * 2}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported: Any = torch.export.export(encoder, (x,), dynamic_shapes=(sides,), strict=strict).module()
        for height, width in ((16, 16), (4, 62)):
            y = torch.rand(1, 3, height, width)
            torch.testing.assert_close(exported(y), encoder(y), rtol=0, atol=1e-5)
        traced: Any = torch.jit.trace(encoder, x, check_trace=False)
        torch.testing.assert_close(traced(x), encoder(x), rtol=0, atol=1e-5)
