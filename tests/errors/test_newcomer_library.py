"""What a newcomer tries in Python after the command line: the same names, a look at an object, what diffusers has."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae import VAE, InputError, VAEFileError, load_vae, save
from exact_vae.__main__ import main, make_parser
from exact_vae.commands.completion import VALUES, commands_of
from exact_vae.vae_model.families.table import all_layouts
from exact_vae.vae_model.families.tiny.model import AutoencoderTiny
from exact_vae.vae_model.files.latents import write_latent
from safetensors.torch import load_file, save_file
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")


def tiny(**options: Any) -> AutoencoderTiny:
    widths: dict[str, Any] = {f"{half}_block_out_channels": (8, 8) for half in ("encoder", "decoder")}
    return AutoencoderTiny(**widths, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), **options).eval()


def test_save_names_layouts_as_convert_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = tiny()
    save(model, tmp_path / "a.safetensors", layout="diffusers")
    save(model, tmp_path / "b.safetensors", layout="taesd-diffusers")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    words = ["convert", str(tmp_path / "a.safetensors"), "-o", str(tmp_path / "c.safetensors"), "--quiet"]
    assert main([*words, "--layout", "diffusers"]) == 0
    one, other = (load_file(tmp_path / f"{name}.safetensors") for name in "ac")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    with pytest.raises(InputError, match=r"^layout: expected one of taesd-diffusers, .*got 'ldm'"):
        save(model, tmp_path / "d.safetensors", layout="ldm")


def test_the_usage_of_convert_names_the_layouts() -> None:
    names = tuple(dict.fromkeys(row.name for row in all_layouts()))
    assert sorted(VALUES["--layout"]) == sorted(names)
    assert f"{{{','.join(VALUES['--layout'])}}}" in commands_of(make_parser())["convert"].format_usage()


def test_a_state_dict_is_told_what_it_does_not_tell(small_model: nn.Module) -> None:
    """The README's words."""
    state, z = small_model.state_dict(), torch.randn(1, 4, 2, 3)
    plain, ended = (load_vae(state, config={"tanh_out": told}, device="cpu", dtype="float32") for told in (False, True))
    raw = plain.first_stage_model.decode(z)  # type: ignore[operator]
    right = ((raw.tanh() + 1) / 2).movedim(1, -1)
    torch.testing.assert_close(ended.decode(z, "untiled"), right, rtol=0, atol=1e-5)
    assert not torch.allclose(plain.decode(z, "untiled"), right, atol=1e-3)


def test_a_vae_shows_what_it_is(small_vae: VAE) -> None:
    line = "VAE(ldm KL autoencoder, latents of 4 channels with 8 x 8 pixels a cell, float32 on cpu)"
    assert repr(small_vae) == str(small_vae) == line
    assert repr(copy.copy(small_vae)) == line
    assert repr(VAE.__new__(VAE)) == "<VAE>"
    widths: dict[str, Any] = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": None}
    half = AutoencoderTiny(**widths, num_encoder_blocks=(1, 1), latent_channels=16).eval()
    assert repr(load_vae(half, device="cpu", dtype="bfloat16", latent_format="flux")) == (
        "VAE(TAESD tiny autoencoder, encoder alone, latents of 16 channels with 2 x 2 pixels a cell, those of flux, "
        "bfloat16 on cpu)"
    )


def test_a_vae_is_loaded_where_it_shall_be(small_vae: VAE) -> None:
    for name in ("to", "cuda", "half"):
        assert not hasattr(small_vae, name)  # hosts and packs ask so
        with pytest.raises(AttributeError, match=rf"'VAE' object has no attribute '{name}': say device and dtype to"):
            getattr(small_vae, name)()
    with pytest.raises(AttributeError, match=r"^'VAE' object has no attribute 'decod'$"):
        small_vae.decod  # type: ignore[attr-defined] # noqa: B018
    assert copy.deepcopy(small_vae).latent_channels == small_vae.latent_channels


def test_latents_where_a_vae_is_meant(tmp_path: Path, small_file: Path) -> None:
    """Files of ours, of the host's new and old nodes, under each ending; dictionaries; in the place of a half."""
    z = torch.randn(1, 4, 2, 3)
    write_latent(z, tmp_path / "ours.safetensors")
    write_latent(z, tmp_path / "tiny.safetensors", raw=False)
    save_file({"latent_tensor": z, "latent_format_version_0": torch.tensor([])}, tmp_path / "new.latent")
    save_file({"latent_tensor": z}, tmp_path / "old.latent")
    torch.save({"samples": z}, tmp_path / "dictionary.pt")
    named = [tmp_path / name for name in ("ours.safetensors", "tiny.safetensors", "new.latent", "old.latent")]
    given: list[Any] = [*named, tmp_path / "dictionary.pt", {"samples": z}, load_file(named[0])]
    for source in (*given, [small_file, named[0]]):
        line = (
            r"^[^\n]*: expected an autoencoder, found latents, 1 x 4 x 2 x 3: give the VAE's weight file here; [^\n]*$"
        )
        with pytest.raises(VAEFileError, match=line):
            load_vae(source, device="cpu", dtype="float32")


def test_nothing_is_sent_anywhere(tmp_path: Path) -> None:
    model: Any = tiny()
    line = (
        "push_to_hub: expected a local folder, got a repository: write one by save_pretrained(folder), "
        "then upload it by huggingface_hub's upload_folder"
    )
    for call in (
        lambda: model.push_to_hub("me/mine"),
        lambda: model.push_to_hub(repo_id="me/mine", token="x", private=True),
        lambda: model.save_pretrained(tmp_path / "a", push_to_hub=True, repo_id="me/mine"),
    ):
        with pytest.raises(InputError, match=f"^{re.escape(line)}$"):
            call()
    with pytest.raises(InputError, match=r"^save_pretrained: expected names of its arguments, got repo_id, x: leave"):
        model.save_pretrained(tmp_path / "a", repo_id="me/mine", x=1)
    assert not (tmp_path / "a").exists()
    model.save_pretrained(tmp_path / "a", push_to_hub=False)
    assert (tmp_path / "a" / "config.json").is_file()
