"""Folders of AutoencoderTiny as people have them, and the words that they copy with the call of diffusers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae.vae_model.checkpoint.save import save
from exact_vae.vae_model.errors import VAEFileError
from exact_vae.vae_model.families.tiny.model import AutoencoderTiny

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("one_thread")

SMALL: dict[str, Any] = {
    "encoder_block_out_channels": (8, 8),
    "decoder_block_out_channels": (8, 8),
    "num_encoder_blocks": (1, 1),
    "num_decoder_blocks": (1, 1),
}


def small(**changes: Any) -> AutoencoderTiny:
    return AutoencoderTiny(**{**SMALL, **changes}).eval()


def require_same(ours: AutoencoderTiny, theirs: Any) -> None:
    """The same weights, and of an image the same to rounding."""
    expected, x = theirs.state_dict(), torch.rand(1, 3, 8, 8)
    assert ours.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in ours.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(ours.encode(x)[0], theirs.encode(x)[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(
            ours.decode(x[:, :1].expand(1, 4, 8, 8))[0],
            theirs.decode(x[:, :1].expand(1, 4, 8, 8))[0],
            rtol=0,
            atol=1e-5,
        )


def test_folders_as_load_vae_takes_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Shards of a variant with their index, half a pipeline's name, the words that people copy with the call."""
    theirs = diffusers.AutoencoderTiny(**SMALL).eval().half()
    plain = copy.deepcopy(theirs).float()
    for folder in (tmp_path, tmp_path / "vae"):
        theirs.save_pretrained(folder, variant="fp16", max_shard_size="4KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    usual: dict[str, Any] = {"use_safetensors": True, "local_files_only": True, "low_cpu_mem_usage": False}
    usual |= {"cache_dir": None, "token": None, "force_download": False}
    for options in ({}, {"subfolder": "vae"}):
        model = AutoencoderTiny.from_pretrained(tmp_path, variant="fp16", torch_dtype=torch.float16, **options, **usual)
        assert {p.dtype for p in model.parameters()} == {torch.float16}
        require_same(model.float(), plain)
    with caplog.at_level("INFO", "exact_vae.vae_model.notes"):
        require_same(AutoencoderTiny.from_pretrained(tmp_path, torch_dtype=None), plain)
    assert "taken is the variant fp16, the only one" in caplog.text


def test_pickles_are_refused_where_safetensors_are_asked_for(tmp_path: Path) -> None:
    theirs = diffusers.AutoencoderTiny(**SMALL).eval()
    theirs.save_pretrained(tmp_path, safe_serialization=False)
    require_same(AutoencoderTiny.from_pretrained(tmp_path, use_safetensors=False), theirs)
    with pytest.raises(VAEFileError, match="expected safetensors, found a pickle: leave out use_safetensors"):
        AutoencoderTiny.from_pretrained(tmp_path, use_safetensors=True)


@pytest.mark.parametrize("setting", [{"act_fn": "silu"}, {"upsample_fn": "bilinear"}])
def test_weights_of_other_settings_than_config_json_tells(setting: dict[str, Any], tmp_path: Path) -> None:
    """`save` writes into the header what no shape tells."""
    small().save_pretrained(tmp_path)
    save(small(**setting), tmp_path / "diffusion_pytorch_model.safetensors")
    (name, value), usual = next(iter(setting.items())), small().config[next(iter(setting))]
    with pytest.raises(VAEFileError, match=f"expected {name} {usual} as config.json says, found {value}: take both"):
        AutoencoderTiny.from_pretrained(tmp_path)
    assert AutoencoderTiny.from_pretrained(tmp_path, **setting).config[name] == value
