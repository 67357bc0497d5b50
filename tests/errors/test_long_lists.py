"""Errors that list names: all where one line holds them, else a count and the nearest."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from exact_vae import VAEFileError, load_vae, vae_model
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
    for config, way in ((whole, r"pass config\['model'\], which has one"), (whole["data"], "add it"), (None, "add it")):
        with pytest.raises(KeyError, match=f"expected a mapping with the key `target`: {way}"):
            instantiate_from_config(config)
    for params, wrong in (
        ({"in_featurs": 3}, "missing a required argument: 'in_features'"),
        ({"in_features": 3, "out_features": 3, "biass": 1}, "got an unexpected keyword argument 'biass'"),
    ):
        with pytest.raises(TypeError, match=f"^configuration: torch.nn.Linear: {wrong}: correct its params$"):
            instantiate_from_config({"target": "torch.nn.Linear", "params": params})


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
