"""Folders of diffusers: which of the files in them are taken, what is told of it, and what is said where none can."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from exact_vae import load_vae
from exact_vae.tests.checkpoint.file_kinds import Made
from exact_vae.tests.checkpoint.folder_kinds import SHARDS, STEM, put, put_shards
from exact_vae.vae_model.checkpoint.load import LoadedModel, load_model
from exact_vae.vae_model.errors import VAEFileError
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")
BLOCKS = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"), ("AttnUpDecoderBlock2D", "UpDecoderBlock2D")


@pytest.fixture
def made(small_model: nn.Module, tmp_path: Path) -> Made:
    return Made(small_model, {"norm_num_groups": 8}, tmp_path)


def refusal(source: Path, variant: str | None = None) -> str:
    """The one line that loading ends in."""
    with pytest.raises(VAEFileError) as caught:
        load_model(source, variant=variant)
    text = str(caught.value)
    assert "\n" not in text
    return text


def assert_is(loaded: LoadedModel, made: Made) -> None:
    state = loaded.model.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in made.model.state_dict().items())


def test_the_only_variant_is_taken_and_told(made: Made) -> None:
    put(made, made.folder, f"{STEM}.non_ema.safetensors")
    loaded = load_model(made.folder)
    assert_is(loaded, made)
    assert loaded.notes == (f"taken is the variant non_ema, the only one in {made.folder}",)
    assert load_model(made.folder, variant="non_ema").notes == ()


def test_plain_files_come_before_variants_without_a_word(made: Made) -> None:
    put(made, made.folder, f"{STEM}.fp16.safetensors", change=1)
    put(made, made.folder, f"{STEM}.bin")
    loaded = load_model(made.folder)
    assert_is(loaded, made)
    assert loaded.notes == ()


def test_several_variants_are_named(made: Made) -> None:
    for name in ("bf16", "fp16"):
        put(made, made.folder, f"{STEM}.{name}.safetensors")
    assert refusal(made.folder) == (
        f"{made.folder}: expected weights without a variant, found bf16, fp16: choose one by variant "
        "(--variant bf16 on the command line), or give its file"
    )
    for variant, file in (("fp16", None), (None, f"{STEM}.fp16.safetensors")):  # both pieces of advice hold
        assert_is(load_model(made.folder / file if file else made.folder, variant=variant), made)


def test_a_variant_that_is_not_there(made: Made) -> None:
    put(made, made.folder, f"{STEM}.fp16.safetensors")
    assert refusal(made.folder, "ema") == (
        f"{made.folder}: expected the variant ema, found fp16: choose one of these, or none"
    )
    (made.folder / f"{STEM}.fp16.safetensors").rename(made.folder / f"{STEM}.safetensors")
    assert refusal(made.folder, "fp16") == (f"{made.folder}: expected the variant fp16, found no variant: leave it out")
    file = made.folder / f"{STEM}.safetensors"
    assert refusal(file, "fp16") == f"{file}: expected a folder of variants, got one file: leave out the variant fp16"


@pytest.mark.parametrize("index", [True, False])
def test_a_missing_shard_is_named(made: Made, index: bool) -> None:
    paths = put_shards(made, made.folder, "safetensors", index=index)
    paths[1].unlink()
    wanted = f"expected all of {SHARDS} files, missing {paths[1].name}: put them into the folder"
    assert refusal(made.folder) == f"{made.folder}: {wanted}"
    assert refusal(paths[0]) == f"{made.folder}: {wanted}"


def test_one_shard_stands_for_all(made: Made) -> None:
    paths = put_shards(made, made.folder, "bin", "fp16")
    loaded = load_model(paths[2])
    assert_is(loaded, made)
    assert loaded.notes == (f"{paths[2].name} is one of {SHARDS} files, all of them were read",)


def test_a_name_like_a_shard_s_is_a_whole_file_where_it_can_be_none(made: Made) -> None:
    for name in (f"{STEM}-00001-of-00001.safetensors", "vae-00000-of-00000.safetensors"):
        put(made, made.folder / name, name)
        assert_is(load_model(made.folder / name / name), made)


def test_the_same_tensor_in_two_shards(made: Made) -> None:
    paths = put_shards(made, made.folder, "safetensors", index=False)
    paths[1].write_bytes(paths[0].read_bytes())
    assert "expected every tensor in one file, found " in refusal(made.folder)


NO_MAP = "expected an index with a weight_map, found none: get another version of it, or give the weights"
BESIDE = "expected names of files beside it, found {}: correct its weight_map"
BAD_INDICES = {
    "no JSON": ("{", "expected an index in JSON, found something else: download it again"),
    "no map": ("{}", NO_MAP),
    "a list": ("[]", NO_MAP),
    "an empty map": ('{"weight_map": {}}', BESIDE.format("0 names")),
    "names elsewhere": ('{"weight_map": {"a": "../b.safetensors"}}', BESIDE.format("../b.safetensors")),
    "names from the root": ('{"weight_map": {"a": "/b.safetensors"}}', BESIDE.format("/b.safetensors")),
    "names of Windows": ('{"weight_map": {"a": "..\\\\b.safetensors"}}', BESIDE.format("..\\\\b.safetensors")),
}


@pytest.mark.parametrize("name", BAD_INDICES)
def test_an_index_is_not_believed(made: Made, name: str) -> None:
    paths = put_shards(made, made.folder, "safetensors")
    index = made.folder / f"{STEM}.safetensors.index.json"
    content, right = BAD_INDICES[name]
    index.write_text(content, encoding="utf-8")
    for source in (made.folder, index):
        assert refusal(source) == f"{index}: {right}"
    assert_is(load_model(paths[0]), made)  # to give the weights is advice that holds


def test_a_pipeline_s_autoencoder_is_found_by_its_class(made: Made) -> None:
    put(made, made.folder / "first_stage", f"{STEM}.safetensors")
    put(made, made.folder / "unet", f"{STEM}.safetensors", change=1)
    (made.folder / "unet" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}', encoding="utf-8")
    (made.folder / "model_index.json").write_text("{}", encoding="utf-8")
    loaded = load_model(made.folder)
    assert_is(loaded, made)
    assert loaded.notes == (f"taken is the folder first_stage of {made.folder}",)
    put(made, made.folder / "second_stage", f"{STEM}.safetensors")
    assert refusal(made.folder) == (
        f"{made.folder}: expected one folder with an autoencoder, found first_stage, second_stage: give one of them"
    )
    put(made, made.folder / "vae", f"{STEM}.safetensors")
    assert_is(load_model(made.folder), made)
    assert_is(load_model(made.folder / "model_index.json"), made)


def test_folders_without_weights_of_one_autoencoder(tmp_path: Path, small_file: Path) -> None:
    for name in ("a.safetensors", "b.ckpt"):
        (tmp_path / name).write_bytes(small_file.read_bytes())
    assert refusal(tmp_path) == (
        f"{tmp_path}: expected a folder with one VAE, found a.safetensors, b.ckpt: give one of these files"
    )
    flax = tmp_path / "flax"
    flax.mkdir()
    (flax / "diffusion_flax_model.msgpack").write_bytes(b"x")
    assert refusal(flax) == (
        f"{flax}: expected a folder with weights such as {STEM}.safetensors, found Flax's only: "
        "give the folder or file that holds them"
    )


@pytest.mark.parametrize(("name", "more"), [("AutoencoderKL", {}), ("VQModel", {"num_vq_embeddings": 16})])
def test_what_diffusers_itself_writes(name: str, more: dict[str, int], tmp_path: Path) -> None:
    """Plain, of a variant, in shards, as a pickle: the same pictures as diffusers' own, up to rounding."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    down, up = BLOCKS
    options = {"layers_per_block": 1, "norm_num_groups": 8, "block_out_channels": (16, 32), **more}
    model = getattr(diffusers, name)(down_block_types=down, up_block_types=up, **options).eval()
    sources = {"plain": {}, "fp16": {"variant": "fp16"}, "sharded": {"max_shard_size": "100KB"}}
    sources |= {"both": {"variant": "bf16", "max_shard_size": "100KB"}, "bin": {"safe_serialization": False}}
    z = torch.randn(1, model.config.latent_channels, 4, 4)
    with torch.inference_mode():
        expected = ((model.decode(z).sample + 1) / 2).clamp(0, 1).movedim(1, -1)
        for folder, how in sources.items():
            model.save_pretrained(tmp_path / folder, **how)
            assert len(list((tmp_path / folder).iterdir())) > (3 if "max_shard_size" in how else 1)
            images = load_vae(tmp_path / folder, dtype="float32", device="cpu").decode(z)
            torch.testing.assert_close(images, expected, rtol=0, atol=2e-5)  # the contract for float32


def test_a_tiny_folder_of_diffusers(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4).eval()
    model.save_pretrained(tmp_path, variant="fp16", safe_serialization=False)
    found = load_model(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["_class_name"] == "AutoencoderTiny"
    assert found.layouts == ("taesd-diffusers",)
    state = model.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in found.model.state_dict().items())
