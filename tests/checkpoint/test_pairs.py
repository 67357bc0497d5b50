"""A pair of halves as one VAE: its folder, both files, and the ways to type them on the command line."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae import load_vae
from exact_vae.__main__ import main
from exact_vae.tests.families.table import ROWS, random_model
from exact_vae.vae_model.checkpoint.load import load_model
from exact_vae.vae_model.checkpoint.save import to_layout
from exact_vae.vae_model.errors import InputError, VAEFileError
from exact_vae.vae_model.files.latents import read_latent, write_latent
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = "TAESD, TAESDXL"
PLAIN = {"dtype": "float32", "device": "cpu"}


def halves(row: str, seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the files of encoder and decoder hold."""
    model = random_model(ROWS[row], seed)
    if ROWS[row].family == "tiny":
        return to_layout(model, "taesd-encoder"), to_layout(model, "taesd-decoder")
    state: dict[str, Tensor] = model.state_dict()
    encoder = {key: tensor for key, tensor in state.items() if key.startswith(("encoder.", "quant_conv."))}
    return encoder, {key: tensor for key, tensor in state.items() if key not in encoder}


def put(folder: Path, name: str, row: str = TINY, seed: int = 0) -> list[Path]:
    """Two files, `name` with encoder and decoder in the place of {}."""
    folder.mkdir(exist_ok=True)
    paths: list[Path] = []
    for half, tensors in zip(("encoder", "decoder"), halves(row, seed), strict=True):
        paths.append(folder / name.format(half))
        tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
        save_file(tensors, paths[-1]) if name.endswith("safetensors") else torch.save(tensors, paths[-1])
    return paths


def refusal(source: Any) -> str:
    with pytest.raises(VAEFileError) as caught:
        load_model(source)
    return str(caught.value)


@pytest.mark.parametrize(
    ("row", "name"),
    [
        *((TINY, name) for name in ("tiny_{}.safetensors", "tiny-{}.pth", "{}.ckpt")),
        *(("TAEF2", "tiny_{}.safetensors"), ("SD1, SD2, SDXL", "my_{}.ckpt"), ("SD3, Flux.1", "{}.safetensors")),
    ],
)
def test_a_folder_of_a_pair_is_the_pair(tmp_path: Path, row: str, name: str, caplog: pytest.LogCaptureFixture) -> None:
    paths = put(tmp_path / "vae", name, row)
    config = {"act_fn": "relu", "upsample_fn": "nearest"} if row == TINY else {"norm_num_groups": 4}
    with caplog.at_level(logging.INFO, logger="exact_vae.vae_model.notes"):
        vae = load_vae(tmp_path / "vae", config=config, **PLAIN)
    model = random_model(ROWS[row])
    assert vae.loaded.notes == (f"taken are the halves {paths[0].name} and {paths[1].name} of {tmp_path / 'vae'}",)
    assert vae.loaded.notes[0] in caplog.text
    pixels = torch.rand(1, 16, 16, 3, generator=torch.Generator().manual_seed(1))
    for source in (list(paths), tuple(paths), [*map(str, paths[::-1])]):
        same = load_vae(source, config=config, **PLAIN)
        assert torch.equal(same.encode(pixels), vae.encode(pixels))
    found = vae.first_stage_model.state_dict()
    assert all(torch.equal(found[key], tensor) for key, tensor in model.state_dict().items())


def test_what_is_in_the_files_decides_and_not_their_names(tmp_path: Path) -> None:
    paths = put(tmp_path / "vae", "tiny_{}.safetensors")
    paths[0].rename(tmp_path / "vae" / "b.safetensors")
    paths[1].rename(tmp_path / "vae" / "a.safetensors")
    save_file({"lora_unet.lora_down.weight": torch.zeros(2, 2)}, tmp_path / "vae" / "lora.safetensors")
    assert load_model(tmp_path / "vae").layouts == ("taesd-encoder", "taesd-decoder")


def test_names_pair_what_content_cannot_and_several_are_named(tmp_path: Path) -> None:
    first, second = (put(tmp_path, f"{name}_{{}}.safetensors", seed=n) for n, name in enumerate(("taesd", "taesdxl")))
    assert refusal(tmp_path) == (
        f"{tmp_path}: expected a folder with one VAE, found taesd_encoder.safetensors + taesd_decoder.safetensors, "
        "taesdxl_encoder.safetensors + taesdxl_decoder.safetensors: choose one, as in "
        f"--vae {first[0]} --vae {first[1]}, in Python by a list"
    )
    assert load_vae(first, **PLAIN).loaded.hints["latent_format"] == "sd"  # the advice holds
    assert load_vae(second, **PLAIN).loaded.hints["latent_format"] == "sdxl"


def test_halves_without_their_others(tmp_path: Path) -> None:
    encoder, decoder = put(tmp_path, "a_{}.safetensors")
    shutil.copy(encoder, tmp_path / "b_encoder.safetensors")
    decoder.unlink()
    assert refusal(tmp_path) == (
        f"{tmp_path}: expected a folder with one VAE, found a_encoder.safetensors (encoder alone), "
        "b_encoder.safetensors (encoder alone): give a file of a whole VAE, or both halves of one"
    )
    encoder.unlink()
    save_file(random_model(ROWS["SD3, Flux.1"]).state_dict(), tmp_path / "whole.safetensors")
    assert refusal(tmp_path).endswith(
        "found b_encoder.safetensors (encoder alone), whole.safetensors: give the file of the whole one"
    )


def test_halves_of_other_shapes_are_no_pair(tmp_path: Path) -> None:
    put(tmp_path, "a_{}.safetensors")[1].unlink()
    put(tmp_path, "b_{}.safetensors", "TAESD3, TAEF1")[0].unlink()
    assert refusal(tmp_path).endswith("give a file of a whole VAE, or both halves of one")


def test_the_folder_tells_whose_latents_where_the_files_cannot(tmp_path: Path) -> None:
    put(tmp_path / "taesdxl", "{}.safetensors")
    assert load_vae(tmp_path / "taesdxl", **PLAIN).loaded.hints["latent_format"] == "sdxl"


@pytest.fixture
def typed(tmp_path: Path) -> dict[str, list[str]]:
    """The ways to name a pair, each as the words behind the command."""
    encoder, decoder = map(str, put(tmp_path / "tiny", "taesd_{}.safetensors"))
    Image.new("RGB", (16, 16), (200, 100, 50)).save(tmp_path / "a.png")
    write_latent(torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0)), tmp_path / "z.safetensors")
    return {
        "twice": ["--vae", encoder, "--vae", decoder],
        "comma": ["--vae", f"{encoder},{decoder}"],
        "plus": ["--vae", f"{decoder}+{encoder}"],
        "folder": ["--vae", str(tmp_path / "tiny")],
    }


@pytest.mark.parametrize("way", ["twice", "comma", "plus", "folder"])
def test_every_way_to_type_a_pair_is_the_same(
    tmp_path: Path, typed: dict[str, list[str]], way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    vae = load_vae(tmp_path / "tiny", **PLAIN)
    words, plain = typed[way], ["--device", "cpu", "--dtype", "float32"]
    files = [word for word in words if word != "--vae"]
    assert main(["encode", str(tmp_path / "a.png"), "-o", str(tmp_path / "o.safetensors"), *words, *plain]) == 0
    pixels = torch.tensor([200, 100, 50]).expand(1, 16, 16, 3) / 255
    assert torch.equal(read_latent(tmp_path / "o.safetensors"), vae.encode(pixels))
    assert main(["decode", str(tmp_path / "z.safetensors"), "-o", str(tmp_path / "o.png"), *words, *plain]) == 0
    assert main(["plan", "--size", "64x64", *words, *plain]) == 0
    assert main(["convert", *files, "-o", str(tmp_path / "whole.safetensors"), "--layout", "comfyui"]) == 0
    whole = load_model(tmp_path / "whole.safetensors").model.state_dict()
    assert all(torch.equal(whole[key], tensor) for key, tensor in vae.first_stage_model.state_dict().items())
    capsys.readouterr()
    assert main(["info", *files, "--json"]) == 0
    printed = capsys.readouterr()
    facts = json.loads(printed.out)
    assert facts["halves"] == "encoder and decoder"
    assert ("taken are the halves" in facts.get("notes", "")) == (way == "folder")


def test_two_words_behind_one_vae(
    tmp_path: Path, typed: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Where inputs may follow, the second word is one of them: the line says how to type it. `plan` has no inputs."""
    _, encoder, _, decoder = typed["twice"]
    assert main(["plan", "--size", "64x64", "--vae", encoder, decoder]) == 0
    picture, latent = str(tmp_path / "a.png"), str(tmp_path / "z.safetensors")
    capsys.readouterr()
    assert main(["encode", "--vae", encoder, decoder, picture]) == 2
    assert capsys.readouterr().err == (
        f"exact-vae: encode: expected a picture, got {decoder}, half of a VAE: name both halves, "
        f"as in --vae {encoder} --vae {decoder}\n"
    )
    assert main(["decode", "--vae", encoder, decoder, latent]) == 2
    assert f"as in --vae {encoder} --vae {decoder}\n" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["decode", latent, "--vae", encoder, decoder])
    assert ended.value.code == 2
    assert f"the two halves of a VAE are --vae {encoder} --vae {decoder}\n" in capsys.readouterr().err
    assert not (tmp_path / "a.safetensors").exists()


def test_one_of_two_that_is_not_there_is_named(tmp_path: Path, typed: dict[str, list[str]]) -> None:
    from exact_vae.commands.vae_option import vae_files

    encoder = typed["twice"][1]
    absent = str(tmp_path / "none.safetensors")
    assert vae_files([f"{encoder},{absent}"]) == [encoder, absent]
    assert vae_files(["none,there"]) == ["none,there"]
    odd = tmp_path / "a,b.safetensors"  # a file's own name
    shutil.copy(encoder, odd)
    assert vae_files([str(odd)]) == [str(odd)]
    assert vae_files(None) == ["bundled"]
    with pytest.raises((InputError, VAEFileError), match=f"{absent}: expected a weight file, found none there"):
        load_vae([encoder, absent], **PLAIN)
