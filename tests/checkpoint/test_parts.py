"""One autoencoder among other things in a file: found, told by its name, and chosen where there are several."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae import NODE_CLASS_MAPPINGS, load_vae
from exact_vae.__main__ import main
from exact_vae.tests.families.table import ROWS, hints, random_model
from exact_vae.vae_model.checkpoint.convert import convert_vae
from exact_vae.vae_model.checkpoint.load import load_model
from exact_vae.vae_model.checkpoint.save import to_layout
from exact_vae.vae_model.errors import VAEFileError
from safetensors.torch import load_file, save_file
from torch import Tensor

GROUPS = {"norm_num_groups": 8}


def refusal(source: Any, part: str | None = None) -> str:
    """The one line that loading ends in."""
    with pytest.raises(VAEFileError) as caught:
        load_model(source, part=part)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_is(source: Any, state: dict[str, Tensor], **options: Any) -> tuple[str, ...]:
    """Load, compare with the plain state dict, and return the notes."""
    loaded = load_model(source, config=GROUPS, **options)
    found = loaded.model.state_dict()
    assert all(torch.equal(found[key], tensor) for key, tensor in state.items())
    return loaded.notes


def changed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor + 1 for key, tensor in state.items()}


def test_the_dictionary_that_was_taken_is_told(state: dict[str, Tensor]) -> None:
    assert assert_is({"ema": state, "step": 3}, state) == ("taken are the weights in ema",)
    assert assert_is({"a": {"b": {"state_dict": state}}}, state) == ("taken are the weights in a.b.state_dict",)
    assert assert_is({"state_dict": state, "epoch": 3}, state) == ()
    assert assert_is({f"ae.{key}": t for key, t in state.items()}, state) == ("taken are the weights in ae",)
    assert assert_is({f"first_stage_model.{key}": t for key, t in state.items()}, state) == ()


def test_several_are_named_and_one_is_chosen(state: dict[str, Tensor]) -> None:
    content = {"model": changed(state), "ema": state, "optimizer": {"m": torch.ones(3)}}
    assert refusal(content) == (
        "the state dict: expected one autoencoder, found 2, in ema, model: choose one by part, "
        "as in exact-vae convert FILE --part ema, which writes it alone"
    )
    assert_is(content, state, part="ema")
    assert_is(content, changed(state), part="model")
    assert refusal(content, "best") == (
        "the state dict: expected an autoencoder in 'best', found ema, model: choose one of these"
    )


def test_several_prefixes_in_one_file(state: dict[str, Tensor]) -> None:
    content = {**changed(state), **{f"ema_vae.{key}": t for key, t in state.items()}}
    assert "found 2, in ., ema_vae: choose one by part" in refusal(content)
    assert_is(content, state, part="ema_vae")
    deep = {"state_dict": {f"net.ema.{key}": t for key, t in state.items()}, "other": {"ema": {"x": torch.ones(1)}}}
    assert_is(deep, state, part="ema")  # the end of its name will do
    assert_is({"a": state, "b": {"a": changed(state)}}, state, part="a")  # the whole name counts before the end of one
    assert "in 'c', found a.c, b.c: choose one" in refusal({"a": {"c": state}, "b": {"c": changed(state)}}, "c")
    assert_is({"a": state, "b": state}, state)  # one and the same dictionary is one


def test_the_file_itself_is_called_by_a_dot(state: dict[str, Tensor]) -> None:
    """Chosen like this, what else is in the file is still unknown to it, unless it lies in dictionaries."""
    assert_is({**state, "ema": changed(state)}, state, part=".")


def test_the_second_copy_of_old_diffusion_models(state: dict[str, Tensor]) -> None:
    content = {f"{name}.{key}": t for name in ("first_stage_model", "cond_stage_model") for key, t in state.items()}
    assert_is(content, state)


def test_what_training_leaves_is_left_out_with_a_note(state: dict[str, Tensor]) -> None:
    beside = {
        "foundation_model.model.cls_token": torch.zeros(1, 1, 8),
        "linear_proj.weight": torch.zeros(4, 4, 1, 1),
        "loss.discriminator.main.0.weight": torch.zeros(4, 3, 4, 4),
        "discriminator.main.0.weight": torch.zeros(1),
    }
    assert assert_is({**state, **beside}, state) == (
        "left out are tensors beside the autoencoder: discriminator (1), foundation_model (1), linear_proj (1), "
        "loss (1)",
    )
    nested = {"model": state, "disc": {"main.0.weight": torch.zeros(1)}}
    assert assert_is(nested, state) == ("taken are the weights in model",)


def test_what_could_be_of_the_network_is_never_left_out(state: dict[str, Tensor]) -> None:
    for key in ("latent_norm.weight", "decoder.extra.weight", "scale", "encoder.foundation_model.weight"):
        assert f"found unknown {key}" in refusal({**state, key: torch.ones(3)})
    assert "found unknown decoder.extra.weight" in refusal({**state, "decoder": {"extra.weight": torch.ones(3)}})


def test_names_of_other_networks_are_no_autoencoder() -> None:
    for key in ("text_model.encoder.layers.0.weight", "net.0.weight", "model.diffusion_model.0.weight"):
        assert "expected an autoencoder, found " in refusal({key: torch.zeros(1)})


def test_dictionaries_that_hold_each_other(tmp_path: Path, state: dict[str, Tensor]) -> None:
    """A pickle of a few bytes must not become a tree of millions of names."""
    first: dict[str, Any] = {"ema": state}
    content = first
    for _ in range(60):
        content = {str(number): content for number in range(50)}
    first["back"] = content
    torch.save({"a": first, "b": first}, tmp_path / "a.pt")
    assert assert_is(tmp_path / "a.pt", state) == ("taken are the weights in a.ema",)


@pytest.mark.parametrize("name", ["Flux.2", "VQ-f8", "Wan 2.1, Qwen-Image", "TAEF2"])
def test_other_families_are_chosen_alike(name: str) -> None:
    model = random_model(ROWS[name])
    layout = "taesd-comfyui" if ROWS[name].family == "tiny" else ROWS[name].layouts[0]
    tensors = to_layout(model, layout)
    other = {key: tensor + 1 for key, tensor in tensors.items()}
    loaded = load_model({"model": other, "ema": tensors}, part="ema", config=hints(ROWS[name].config))
    state = loaded.model.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in model.state_dict().items())
    with pytest.raises(VAEFileError, match="found 2, in ema, model: choose one"):
        load_model({"model": other, "ema": tensors})


# -- the places that take a VAE ----------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path: Path, state: dict[str, Tensor]) -> Path:
    """Of norm groups that shapes tell, and in it two models: half the numbers, and all of them."""
    torch.save({"model": {key: t / 2 for key, t in state.items()}, "ema": state}, tmp_path / "a.ckpt")
    (tmp_path / "config.json").write_text(json.dumps({"latent_channels": 4, **GROUPS}), encoding="utf-8")
    return tmp_path / "a.ckpt"


def test_the_library_tells_where_it_is_asked_for(
    checkpoint: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO, logger="exact_vae.vae_model.notes"):
        vae = load_vae(checkpoint, part="ema", device="cpu", dtype="float32")
    assert vae.loaded.notes == ("taken are the weights in ema",)
    assert caplog.messages == [f"{checkpoint}: taken are the weights in ema"]
    load_vae(checkpoint, part="ema", device="cpu", dtype="float32")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("part", ["ema", " ema "])
def test_the_loader_node_takes_part(stub_host: Any, checkpoint: Path, state: dict[str, Tensor], part: str) -> None:
    stub_host.files = {"vae": {"a.ckpt": checkpoint}, "vae_approx": {}}
    load = NODE_CLASS_MAPPINGS["ExactVAELoader"]().load_vae
    (vae,) = load("a.ckpt", "float32", part)
    assert all(torch.equal(vae.get_sd()[key], tensor) for key, tensor in state.items())
    function, arguments = vae.patcher.cached_patcher_init  # by this the host loads it once more, for another device
    again = function(*arguments).model.state_dict()
    assert all(torch.equal(again[key], tensor) for key, tensor in state.items())
    with pytest.raises(VAEFileError, match="found 2, in ema, model: choose one by part"):
        load("a.ckpt", "float32")
    with pytest.raises(VAEFileError, match="expected an autoencoder in 'other', found ema, model"):
        load("a.ckpt", "float32", "other")


def test_every_verb_takes_part_and_variant(
    checkpoint: Path, state: dict[str, Tensor], photos: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    convert_vae([str(checkpoint)], folder, "diffusers", part="ema")
    capsys.readouterr()  # a command before this test may have left the notes shown
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.rename(folder / "diffusion_pytorch_model.ema.safetensors")
    save_file({k: t * 0 for k, t in load_file(folder / "diffusion_pytorch_model.ema.safetensors").items()}, weights)
    photo = next(path for path in sorted(photos.iterdir()) if path.suffix == ".png")
    latents: list[Tensor] = []
    for vae in (["--vae", str(checkpoint), "--part", "ema"], ["--vae", str(folder), "--variant", "ema"]):
        words = ["-o", str(tmp_path / "z.safetensors"), *vae, "--dtype", "float32", "--device", "cpu"]
        assert main(["encode", str(photo), *words]) == 0
        latents.append(load_file(tmp_path / "z.safetensors")["latent_tensor"])
        words[1] = str(tmp_path / "out.png")
        assert main(["decode", str(tmp_path / "z.safetensors"), *words, "--quiet"]) == 0
        assert main(["plan", "--size", "64x64", *vae]) == 0
    assert torch.equal(*latents)
    told = capsys.readouterr().err.count(f"exact-vae: {checkpoint}: taken are the weights in ema\n")
    assert told == 2  # of encode and plan: --quiet says nothing
    assert main(["info", str(checkpoint), "--part", "ema", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["notes"] == "taken are the weights in ema"
    assert main(["info", str(folder), "--variant", "ema", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["file"].endswith("diffusion_pytorch_model.ema.safetensors")
    target = tmp_path / "alone.safetensors"
    assert main(["convert", str(checkpoint), "-o", str(target), "--layout", "ldm", "--part", "ema"]) == 0
    written = load_file(target)
    assert all(torch.equal(written[key], tensor) for key, tensor in state.items())
    rest = ["--images", str(photos), "--crop", "32", "--json", "--device", "cpu", "--variant", "ema"]
    main(["evaluate", str(target), str(folder), *rest])
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["vaes"]
    assert rows[0]["psnr"]["values"] == rows[1]["psnr"]["values"]


def test_without_a_choice_the_command_line_names_them(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(checkpoint)]) == 2
    assert "found 2, in ema, model: choose one by part" in capsys.readouterr().err


def test_a_folder_is_not_written_over_itself(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pipeline" / "vae"
    convert_vae([str(checkpoint)], folder, "diffusers", part="ema")
    for source in (folder, folder.parent):
        with pytest.raises(ValueError, match="-o: expected another file than the input"):
            convert_vae([str(source)], folder, "diffusers")
