"""Weights of a file under another ddconfig: what no shape tells is refused where the file says otherwise, else told."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae.vae_model.checkpoint.save import save
from exact_vae.vae_model.families.ldm.autoencoder import AutoencoderKL
from safetensors.torch import save_file

pytest.importorskip("lightning", reason="the trainer's packages are absent: pip install 'exact-vae[train]'")
from exact_vae.vae_model.training.config import ConfigError
from exact_vae.vae_model.training.kl_module import AutoEncoderKL

DD: dict[str, Any] = {
    "ch": 32,
    "out_ch": 3,
    "in_channels": 3,
    "ch_mult": (1, 2),
    "num_res_blocks": 1,
    "z_channels": 4,
}


def write(path: Path, **changes: Any) -> str:
    save(AutoencoderKL(4, {**DD, **changes}), path)
    return str(path)


def write_silent(path: Path) -> str:
    """As files of ldm are: tensors and no word."""
    save_file(AutoencoderKL(4, DD).state_dict(), path)
    return str(path)


@pytest.mark.parametrize(
    ("theirs", "ours", "found"),
    [
        ({"num_groups": 16}, {}, "norm_num_groups 16 instead of 32"),
        ({}, {"num_groups": 8}, "norm_num_groups 32 instead of 8"),
        ({"tanh_out": True}, {}, "tanh_out True instead of False"),
        ({}, {"tanh_out": True}, "tanh_out False instead of True"),
        ({"num_groups": 16, "tanh_out": True}, {}, "norm_num_groups 16 instead of 32; tanh_out True instead of False"),
    ],
)
def test_a_file_that_says_otherwise_is_refused(
    tmp_path: Path, theirs: dict[str, Any], ours: dict[str, Any], found: str
) -> None:
    path = write(tmp_path / "a.safetensors", **theirs)
    line = f"model.ckpt_path: expected settings as in ddconfig, got {path} with {found}: set them in ddconfig, or "
    with pytest.raises(ConfigError) as caught:
        AutoEncoderKL({**DD, **ours}, 4, ckpt_path=path)
    assert str(caught.value) == line + "leave ddconfig out"
    module = AutoEncoderKL({**DD, **ours}, 4)
    before = {key: tensor.clone() for key, tensor in module.model.state_dict().items()}
    with pytest.raises(ConfigError):
        module.init_from_checkpoint(path)
    assert all(tensor.equal(before[key]) for key, tensor in module.model.state_dict().items())


@pytest.mark.parametrize("ours", [{"num_groups": 16}, {"tanh_out": True}])
def test_of_a_file_that_says_nothing_ddconfig_counts_with_a_note(
    tmp_path: Path, ours: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    path = write_silent(tmp_path / "a.safetensors")
    with caplog.at_level(logging.INFO, "exact_vae.vae_model.notes"):
        module = AutoEncoderKL({**DD, **ours}, 4, ckpt_path=path)
    notes = [record.getMessage() for record in caplog.records if "ddconfig" in record.getMessage()]
    usual = "norm_num_groups 32 instead of 16" if "num_groups" in ours else "tanh_out False instead of True"
    assert notes == [f"{path}: it does not say its settings: usual are {usual}; those of ddconfig are taken"]
    decoder: Any = module.model.decoder
    assert decoder.norm_out.num_groups == ours.get("num_groups", 32)
    assert decoder.tanh_out == ours.get("tanh_out", False)


@pytest.mark.parametrize("theirs", [{}, {"num_groups": 16}, {"tanh_out": True}, {"dropout": 0.1}])
def test_the_same_settings_are_quiet(tmp_path: Path, theirs: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """Dropout is chosen for every training anew."""
    path = write(tmp_path / "a.safetensors", **theirs)
    caplog.clear()
    with caplog.at_level(logging.INFO, "exact_vae.vae_model.notes"):
        for dropout in (0.0, 0.3):
            module = AutoEncoderKL({**DD, **theirs, "dropout": dropout}, 4, ckpt_path=path)
        AutoEncoderKL(ckpt_path=path)
        assert caplog.records == []
        silent = write_silent(tmp_path / "b.safetensors")
        AutoEncoderKL(DD, 4, ckpt_path=silent)
        assert caplog.records == []
        AutoEncoderKL(ckpt_path=silent)
    (note,) = [record.getMessage() for record in caplog.records]
    assert "taken are norm_num_groups as 32" in note
    assert note.endswith(
        "say them by num_groups and the others in model.params.ddconfig, or in a diffusers config.json beside the file"
    )
    weight: Any = module.model.decoder.conv_out.weight
    x = torch.randn(1, 4, 4, 4)
    assert module.model.decode(x).shape == (1, 3, 8, 8)
    assert weight.requires_grad


def test_a_half_whose_weights_are_not_taken_may_have_other_settings(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", tanh_out=True)
    ignored = ["decoder.", "post_quant_conv."]
    assert AutoEncoderKL(DD, 4, ckpt_path=path, ignore_keys=ignored).model.decoder.tanh_out is False
