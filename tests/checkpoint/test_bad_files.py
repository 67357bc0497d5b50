"""Files that are no autoencoder, or a damaged one: one line that says what it is, what it lacks and what to do."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae import load_vae
from exact_vae.vae_model.checkpoint.load import load_model
from exact_vae.vae_model.errors import VAEFileError
from safetensors.torch import save_file
from torch import Tensor

LDM = "nearest family: ldm KL autoencoder in ldm layout, missing decoder.conv_in.weight"


def refusal(source: Any) -> str:
    """The one line that loading `source` ends in."""
    with pytest.raises(VAEFileError) as caught:
        load_model(source)
    text = str(caught.value)
    assert "\n" not in text
    assert "expected" in text
    return text


OTHERS: dict[str, tuple[list[str], str]] = {
    "LoRA": (["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"], "a LoRA"),
    "LoRA of diffusers": (["unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight"], "a LoRA"),
    "checkpoint without VAE": (["model.diffusion_model.input_blocks.0.0.weight"], "a diffusion model"),
    "Flux": (["double_blocks.0.img_attn.qkv.weight", "img_in.weight"], "a diffusion model"),
    "SD3 of diffusers": (["transformer_blocks.0.attn.to_q.weight"], "a diffusion model"),
    "CLIP": (["text_model.embeddings.position_embedding.weight"], "a text encoder"),
    "Wan 2.2": (["decoder.upsamples.0.upsamples.0.residual.2.weight", "encoder.conv1.weight"], "a Wan 2.2 autoencoder"),
    "video": (["decoder.conv_in.conv.weight"], "a video autoencoder"),
    "Stable Cascade": (["vquantizer.codebook.weight"], "a Stable Cascade stage A autoencoder"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_are_named(tmp_path: Path, name: str) -> None:
    keys, what = OTHERS[name]
    path = tmp_path / "other.safetensors"
    save_file({key: torch.zeros(4, 4) for key in keys}, path)
    text = refusal(path)
    assert text.startswith(f"{path}: expected an autoencoder, found {what}; nearest family: ")
    assert ", missing " in text
    assert text.endswith(": choose a VAE file")


def test_what_nobody_knows_is_told_the_nearest_family(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "a.safetensors")
    assert "expected an autoencoder, found 2 other tensors; nearest family: " in refusal(tmp_path / "a.safetensors")
    keys = ["decoder.conv_out.weight", "decoder.norm_out.weight", "decoder.up.0.block.0.conv1.weight"]
    save_file({key: torch.zeros(1) for key in keys}, tmp_path / "a.safetensors")
    text = refusal(tmp_path / "a.safetensors")
    assert LDM in text
    assert text.endswith(", decoder.mid.block_2.conv2.weight: choose a VAE file")


@pytest.mark.parametrize(
    ("key", "what"),
    [("bn.running_mean", "Flux.2 autoencoder"), ("quantize.embedding.weight", "VQ autoencoder")],
)
def test_a_stray_key_of_a_relative_is_no_relative(state: dict[str, Tensor], key: str, what: str) -> None:
    assert f"expected a whole {what} in ldm layout" in refusal({**state, key: torch.zeros(1)})


def change(state: dict[str, Tensor], **changes: Tensor | None) -> dict[str, Tensor]:
    """With keys replaced, added, or dropped (None); dots are written as two underscores."""
    changed = {**state, **{name.replace("__", "."): tensor for name, tensor in changes.items()}}
    return {name: tensor for name, tensor in changed.items() if tensor is not None}


WHOLE = "expected a whole ldm KL autoencoder"
DAMAGED: dict[str, tuple[dict[str, Any], str]] = {
    "missing": (
        {"decoder__conv_out__bias": None, "encoder__mid__attn_1__q__weight": None},
        f"{WHOLE} in ldm layout, found missing decoder.conv_out.bias",
    ),
    "missing first convolution": (
        {"decoder__up__0__block__0__conv1__weight": None},
        f"{WHOLE} in ldm layout, missing decoder.up.0.block.0.conv1.weight: choose another file",
    ),
    "extra": ({"decoder__extra__weight": torch.zeros(1)}, f"{WHOLE} in ldm layout, found unknown decoder.extra.weight"),
    "extra with a line break": (
        {"a\nb" + "c" * 5000: torch.zeros(1)},
        f"{WHOLE} in ldm layout, found unknown 'a\\nbccc",
    ),
    "shape": (
        {"decoder__mid__block_1__conv1__weight": torch.zeros(64, 64, 1, 1)},
        "decoder.mid.block_1.conv1.weight has shape (64, 64, 1, 1) instead of (64, 64, 3, 3): choose another file",
    ),
    "rank": ({"decoder__conv_in__weight": torch.zeros(3)}, f"{WHOLE} in ldm layout, "),
    "integers": (
        {"decoder__conv_in__bias": torch.zeros(64, dtype=torch.int64)},
        f"{WHOLE} in ldm layout, found not floating point: decoder.conv_in.bias: choose another file",
    ),
    "empty tensor": (
        {"decoder__conv_in__weight": torch.zeros(64, 0, 3, 3)},
        "expected numbers in all tensors, found none in decoder.conv_in.weight: choose another file",
    ),
    "width without groups": (
        {"encoder__conv_in__weight": torch.zeros(30, 3, 3, 3), "encoder__conv_in__bias": torch.zeros(30)},
        f"{WHOLE} in ldm layout, found missing encoder.down.0.block.0.nin_shortcut.bias",
    ),
    "odd scale": ({"vae_scale": torch.zeros(3)}, "expected one finite number in vae_scale, found another tensor"),
    "zero scale": ({"vae_scale": torch.zeros(())}, "expected one finite number in vae_scale, found another tensor"),
    "complex scale": ({"vae_scale": torch.ones((), dtype=torch.complex64)}, "expected one finite number in vae_scale"),
    "sparse": (
        {"decoder__conv_in__bias": torch.zeros(64).to_sparse()},
        "expected dense tensors, found 'decoder.conv_in.bias' sparse or expanded",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_state_dicts(state: dict[str, Tensor], name: str) -> None:
    changes, expected = DAMAGED[name]
    text = refusal(change(state, **changes))
    assert text.startswith("the state dict: ")
    assert expected in text
    assert len(text) < 600


def test_all_differences_are_gathered(tmp_path: Path, state: dict[str, Tensor]) -> None:
    broken = change(
        state,
        encoder__conv_out__bias=None,
        decoder__extra=torch.zeros(1),
        decoder__conv_in__bias=torch.zeros(64, dtype=torch.int32),
        decoder__norm_out__bias=torch.zeros(5),
    )
    save_file(broken, tmp_path / "a.safetensors", metadata={"norm_num_groups": "8"})
    assert refusal(tmp_path / "a.safetensors") == (
        f"{tmp_path / 'a.safetensors'}: expected a whole ldm KL autoencoder in ldm layout, found missing "
        "encoder.conv_out.bias; unknown decoder.extra; decoder.norm_out.bias has shape (5,) instead of (32,); "
        "not floating point: decoder.conv_in.bias: choose another file"
    )


@pytest.mark.parametrize("groups", ["many", "0", "7"])
def test_a_wrong_number_of_groups(tmp_path: Path, state: dict[str, Tensor], groups: str) -> None:
    path = tmp_path / "a.safetensors"
    save_file(state, path, metadata={"norm_num_groups": groups})
    text = refusal(path)
    assert text.startswith(f"{path}: expected settings that fit the weights, got norm_num_groups {groups} (")
    assert text.endswith("): correct it in its config.json or header, or say it by config")
    assert load_model(path, config={"norm_num_groups": 8}).config.num_groups == 8  # type: ignore[union-attr]


def test_the_wrong_settings_are_named_and_no_others(tmp_path: Path, state: dict[str, Tensor]) -> None:
    """In the header and in a config.json beside it; correcting what is named is enough."""
    told: dict[str, Any] = {"latent_channels": 4, "norm_num_groups": 8, "dropout": 7, "act_fn": "silu"}
    (tmp_path / "config.json").write_text(json.dumps(told), encoding="utf-8")
    save_file(state, tmp_path / "a.safetensors", metadata={"tanh_out": "perhaps"})
    assert "got dropout 7, tanh_out perhaps (" in refusal(tmp_path / "a.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(told | {"dropout": 0.5}), encoding="utf-8")
    assert "got tanh_out perhaps (" in refusal(tmp_path / "a.safetensors")
    save_file(state, tmp_path / "a.safetensors", metadata={"tanh_out": "True"})
    assert load_model(tmp_path / "a.safetensors").config.tanh_out  # type: ignore[union-attr]


def test_a_negative_number_of_groups(tmp_path: Path, state: dict[str, Tensor]) -> None:
    save_file(state, tmp_path / "a.safetensors", metadata={"norm_num_groups": "-8"})
    refusal(tmp_path / "a.safetensors")


def half(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    other = {"encoder": "decoder.", "decoder": "encoder."}[name]
    return {key: t for key, t in state.items() if not key.startswith((other, "quant_conv", "post_quant_conv"))}


def test_the_same_half_twice(tmp_path: Path, state: dict[str, Tensor]) -> None:
    for name in "ab":
        save_file(half(state, "encoder"), tmp_path / f"{name}.safetensors")
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    assert refusal(paths) == (
        f"{paths[0]} + {paths[1]}: expected an encoder and a decoder, "
        "found encoder.conv_in.bias in both: give each half once"
    )


def test_halves_of_different_families(state: dict[str, Tensor]) -> None:
    tiny = {"1.weight": torch.zeros(64, 4, 3, 3)}
    text = refusal([half(state, "encoder"), tiny])
    assert "expected the halves of one autoencoder, found ldm and taesd-decoder: give two that belong together" in text
    assert "expected the halves of one autoencoder, found no file" in refusal([])


def test_halves_of_different_factors(state: dict[str, Tensor]) -> None:
    short = {key: tensor for key, tensor in half(state, "decoder").items() if not key.startswith("decoder.up.3")}
    assert "expected equal factors, got 8 (encoder) and 4 (decoder)" in refusal([half(state, "encoder"), short])


NO_WEIGHTS = {
    "empty": (b"", "expected weights, found an empty file: download it again"),
    "web page": (b"\n <!DOCTYPE html><html>Not Found</html>", "found a web page saved under this name"),
    "bare web page": (b"<html><body>Sign in</body></html>", "found a web page saved under this name"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "found a Git LFS pointer"),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".sft", ".ckpt", ".pth"])
@pytest.mark.parametrize("name", NO_WEIGHTS)
def test_not_weights_at_all(tmp_path: Path, name: str, suffix: str) -> None:
    content, expected = NO_WEIGHTS[name]
    path = tmp_path / f"vae{suffix}"
    path.write_bytes(content)
    text = refusal(path)
    assert text.startswith(f"{path}: expected weights, ")
    assert expected in text


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    missing = tmp_path / "none.safetensors"
    assert refusal(missing) == f"{missing}: expected a weight file, found none there: check the path"
    assert refusal(tmp_path) == (
        f"{tmp_path}: expected a folder with weights such as diffusion_pytorch_model.safetensors, found none: "
        "give the folder or file that holds them"
    )


@pytest.mark.parametrize("name", ["vae.gguf", "vae.onnx", "vae", "vae.ckpt", "vae.bin", "VAE.SFT"])
def test_the_bytes_say_what_a_file_is_and_not_its_ending(tmp_path: Path, small_file: Path, name: str) -> None:
    shutil.copy(small_file, tmp_path / name)
    expected, found = (load_model(path).model.state_dict() for path in (small_file, tmp_path / name))
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


@pytest.mark.parametrize("name", ["vae.safetensors", "vae.sft", "vae", "vae.pickle"])
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_pickle_under_another_ending(tmp_path: Path, state: dict[str, Tensor], name: str, form: str) -> None:
    torch.save(state, tmp_path / name, _use_new_zipfile_serialization=form == "zip")
    found = load_model(tmp_path / name, config={"norm_num_groups": 8}).model.state_dict()
    assert all(torch.equal(found[key], tensor) for key, tensor in state.items())


SAFETENSORS = "get the VAE as .safetensors"
OTHER_FORMATS: dict[str, tuple[str, bytes, str, str]] = {
    "GGUF": ("vae.gguf", b"GGUF\3\0\0\0", "a GGUF file of quantised weights", SAFETENSORS),
    "GGUF renamed": ("vae.safetensors", b"GGUF\3\0\0\0", "a GGUF file of quantised weights", SAFETENSORS),
    "ONNX": ("vae.onnx", b"\x08\x07\x12\x07pytorch", "an ONNX program", SAFETENSORS),
    "Flax": ("diffusion_flax_model.msgpack", b"\x83\xa7decoder", "weights of Flax", SAFETENSORS),
    "Keras": ("vae.h5", b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes it", SAFETENSORS),
    "picture": ("vae.png", b"\x89PNG\r\n\x1a\n", "a picture", "give the VAE's weight file"),
    "packed": (
        "vae.safetensors",
        b"7z\xbc\xaf\x27\x1c",
        "a packed archive",
        "unpack it and give the weight file in it",
    ),
    "settings": ("v1.yaml", b"model:", "a file of settings", "give the weight file that belongs to it"),
    "nothing known": ("vae.dat", b"abc", "", ""),
}


@pytest.mark.parametrize("name", OTHER_FORMATS)
def test_other_formats_are_named_with_what_to_get(tmp_path: Path, name: str) -> None:
    file, content, what, remedy = OTHER_FORMATS[name]
    (tmp_path / file).write_bytes(content)
    if what:
        assert refusal(tmp_path / file) == f"{tmp_path / file}: expected weights, found {what}: {remedy}"
    else:
        known = ".safetensors .sft .pt .pth .ckpt .bin"
        text = f"{tmp_path / file}: expected a weight file ({known}), found no kind of one: {SAFETENSORS}"
        assert refusal(tmp_path / file) == text


def test_archives_of_other_things(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "vae.zip", "w") as archive:
        archive.writestr("vae.safetensors", b"x")
    assert refusal(tmp_path / "vae.zip").endswith(
        "expected weights, found an archive of other files: unpack it and give the weight file"
    )
    with zipfile.ZipFile(tmp_path / "vae.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"vae/{name}", b"\x80\x02N.")
    assert refusal(tmp_path / "vae.pt").endswith(
        "expected a pickle of tensors, found a TorchScript program: get the VAE as .safetensors"
    )


def test_a_sound_file_of_numbers_that_are_not_known_is_not_to_be_downloaded_again(tmp_path: Path) -> None:
    header = b'{"decoder.conv_in.weight": {"dtype": "F3_NEW", "shape": [4], "data_offsets": [0, 4]}}'
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert refusal(tmp_path / "a.safetensors").endswith(
        "expected numbers that this safetensors knows, found F3_NEW in decoder.conv_in.weight: "
        "get the float16 or float32 version"
    )


def test_an_unreadable_file(tmp_path: Path, small_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert refusal(small_file) == (
        f"{small_file}: expected a readable file, got Permission denied: check its permissions"
    )


def test_the_loader_says_the_same_and_the_bundled_file_may_be_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(VAEFileError, match="expected a weight file, found none there"):
        load_vae(tmp_path / "none.safetensors")
    monkeypatch.setattr("exact_vae.model_management.loader.BUNDLED_FILE", tmp_path / "bundled.safetensors")
    with pytest.raises(VAEFileError) as caught:
        load_vae()
    assert str(caught.value) == ("bundled.safetensors: expected the bundled VAE, found none: install the project again")
