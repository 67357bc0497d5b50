"""Errors that list names: all where one line holds them, else a count and the nearest."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from exact_vae import InputError, VAEFileError, load_vae, vae_model
from exact_vae.vae_model.errors.listed import choices, some
from exact_vae.vae_model.families.ldm.instantiate import get_obj_from_str, instantiate_from_config
from torch import nn


def test_names_that_fit_are_all_told() -> None:
    assert choices(["a", "b"], "c") == "a, b"
    assert some(["a", "b", "c", "d"]) == "a, b, c, d"


def test_names_that_do_not_fit_are_counted_and_the_nearest_told() -> None:
    names = [f"layer_of_number_{i:03}" for i in range(50)] + ["Decoder", "torch.optim.Adam"]
    assert choices(names, "decodr") == "52 names, the nearest Decoder"
    assert choices(names, "Adam") == "52 names, the nearest torch.optim.Adam"
    assert choices([*names, "Dec", "dec"], "DEC") == "54 names, the nearest Dec, dec, Decoder"  # case does not hide one
    assert choices(names, "?") == f"52 names, such as {', '.join(names[:4])}"
    assert some(names, 2) == "layer_of_number_000, layer_of_number_001 and 50 more"
    assert some(["a a", "b b"], between="; ") == "a a; b b"


def test_targets_of_configurations() -> None:
    line = (
        r"^configuration: expected a target among \d+ names, the nearest Encoder, .*, or torch's own, "
        r"got 'ldm.modules.Encodr': use one of these names$"
    )
    for ask in (get_obj_from_str, lambda name: instantiate_from_config({"target": name})):
        with pytest.raises(ValueError, match=line) as caught:
            ask("ldm.modules.Encodr")
        assert len(str(caught.value)) < 300


def test_configurations_that_are_not_what_was_meant() -> None:
    with pytest.raises(ValueError, match=r"names, the nearest .*\bAutoencoderKL\b.*, got 'x.AutoencoderKl'"):
        get_obj_from_str("x.AutoencoderKl")
    with pytest.raises(ValueError, match="names, such as AE3DConv, "):  # nothing is near
        get_obj_from_str("os.system")
    whole = {"model": {"target": "x.Encoder", "params": {}}, "data": {"train": "photos"}}
    for config, way in (
        (whole, r"got model, data: pass config\['model'\], which has one"),
        (whole["data"], "got train: add it"),
        ({"Target": "Encoder"}, "got Target: call Target so"),
        (None, "got None: pass {'target': "),
        ([1], r"got \[1\]: pass"),
        ("Encoder", "got 'Encoder': pass"),
    ):
        with pytest.raises(KeyError, match=f"expected a mapping with the key `target`, {way}") as caught:
            instantiate_from_config(config)
        assert isinstance(caught.value, InputError)
        assert str(caught.value).startswith("configuration: ")  # a KeyError's text is otherwise in quotes
    for params, wrong in (
        ({"in_featurs": 3}, "missing a required argument: 'in_features': say in_features instead of in_featurs"),
        (
            {"in_features": 3, "out_features": 3, "biass": 1},
            "got an unexpected keyword argument 'biass': say bias instead of biass",
        ),
        ({"in_features": 3}, "missing a required argument: 'out_features': correct its params"),
        ([3, 4], r"expected params as names with values, got \[3, 4\]: write the name of each argument"),
        (3, "expected params as names with values, got 3: write the name of each argument"),
    ):
        with pytest.raises(TypeError, match=f"^configuration: torch.nn.Linear: {wrong}$"):
            instantiate_from_config({"target": "torch.nn.Linear", "params": params})


DD = {"ch": 32, "out_ch": 3, "in_channels": 3, "num_res_blocks": 1, "z_channels": 4}


@pytest.mark.parametrize("given", [None, 3, ["Encoder"], b"Encoder", nn.Linear])
def test_names_that_are_no_text(given: object) -> None:
    for ask in (get_obj_from_str, lambda name: instantiate_from_config({"target": name})):
        with pytest.raises(InputError, match=r"^configuration: expected a class by its name, .*, got .*: write one$"):
            ask(given)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("torch.nn.Linar", "torch.nn.Linear"),
        ("torch.nn.conv_2d", "torch.nn.Conv2d"),
        ("torch.nn.modules.linear.Linar", "torch.nn.modules.linear.Linear"),
        ("torch.optim.AdmW", "torch.optim.AdamW"),
        ("torch.optim.CosineAnnealingLR", "torch.optim.lr_scheduler.CosineAnnealingLR"),
        ("torch.Linear", "torch.nn.Linear"),
        ("torch.nn.functional.relu", "torch.nn.ReLU"),
    ],
)
def test_the_nearest_of_torchs_names_is_told(given: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"got {given!r}: say {near}( or .*)?$"):
        get_obj_from_str(given)
    get_obj_from_str(near)


@pytest.mark.parametrize("given", ["torch.hub.load", "torch.nn.functional.zzz", "torch.", "torch.nn.Module.train"])
def test_nothing_else_of_torch_can_be_named(given: str) -> None:
    with pytest.raises(ValueError, match=r"expected a class of torch\.nn or torch\.optim"):
        get_obj_from_str(given)


def test_the_autoencoder_of_a_diffusion_model() -> None:
    first = {"target": "ldm.models.autoencoder.AutoencoderKL", "params": {"embed_dim": 4, "ddconfig": DD}}
    for target in ("ldm.models.diffusion.ddpm.LatentDiffusion", "sgm.models.diffusion.DiffusionEngine", "mine.Whole"):
        config = {"target": target, "params": {"linear_start": 0.001, "first_stage_config": first}}
        with pytest.raises(ValueError, match=rf"got '{target}': pass params\.first_stage_config, which is one, as"):
            instantiate_from_config(config)
    with pytest.raises(ValueError, match=r"a diffusion model: take its params\.first_stage_config$"):
        get_obj_from_str("ldm.models.diffusion.ddpm.LatentDiffusion")
    made = instantiate_from_config(config["params"]["first_stage_config"])
    assert isinstance(made, vae_model.AutoencoderKL)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: vae_model.AutoencoderKL(embeddim=4, ddconfig=DD),
            "missing .*'embed_dim'; say embed_dim instead of embeddim$",
        ),
        (
            lambda: vae_model.AutoencoderKL(4, DD, emadecay=0.9),
            "AutoencoderKL: .*got emadecay: .*; say ema_decay instead of emadecay$",
        ),
        (
            lambda: instantiate_from_config({"target": "x.AutoencoderKL", "params": {"embeddim": 4, "ddconfig": DD}}),
            "x.AutoencoderKL: .*: say embed_dim instead of embeddim$",
        ),
        (
            lambda: instantiate_from_config({"target": "AutoencoderTiny", "params": {"latentchannels": 4}}),
            "say latent_channels instead of latentchannels$",
        ),
    ],
)
def test_misspelt_arguments_are_told_the_right_name(make: Callable[[], object], text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=text) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_options_that_are_like_none_are_left_out_as_before(caplog: pytest.LogCaptureFixture) -> None:
    vae_model.Encoder(**DD, beautiful=True)
    assert caplog.messages == ["Encoder: ignoring unknown options beautiful"]


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: vae_model.AutoencoderKL(4, {**DD, "chmult": [1]}), "got chmult: ch_mult is probably meant"),
        (
            lambda: instantiate_from_config({"target": "x.Decoder", "params": {**DD, "atn_type": "none", "good": 1}}),
            "got atn_type: attn_type is probably meant",
        ),
    ],
)
def test_a_misspelt_option_of_a_network_is_refused(build: Callable[[], object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        build()


def _ema_of_another() -> None:
    deep = nn.Sequential(*(nn.Linear(2, 2) for _ in range(20)))
    vae_model.LitEma(deep)(nn.Linear(2, 2))


LONG: dict[str, tuple[Callable[[], object], str]] = {
    "ema": (_ema_of_another, "got one without 0.bias, 0.weight, 1.bias, 1.weight and 36 more: give that one"),
    "configuration": (
        lambda: vae_model.AutoencoderTiny().config.latent_chanels,
        "names, the nearest latent_channels, ",
    ),
}


@pytest.mark.parametrize("name", LONG)
def test_others(name: str) -> None:
    call, told = LONG[name]
    with pytest.raises((ValueError, AttributeError), match=re.escape(told)) as caught:
        call()
    assert len(str(caught.value)) < 300


def test_parts_of_a_checkpoint(tmp_path: Path, small_model: nn.Module) -> None:
    state = small_model.state_dict()
    torch.save({f"after_epoch_{i:02}": dict(state) for i in range(30)}, tmp_path / "many.pt")
    with pytest.raises(
        VAEFileError, match=r"found 30, in after_epoch_00, .*, after_epoch_07 and 22 more: choose one by part"
    ):
        load_vae(tmp_path / "many.pt", device="cpu")
    with pytest.raises(
        VAEFileError, match=r"expected an autoencoder in 'after_epoch5', found 30 names, the nearest after_epoch_"
    ):
        load_vae(tmp_path / "many.pt", device="cpu", part="after_epoch5")
