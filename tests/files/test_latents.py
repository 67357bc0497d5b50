"""ComfyUI's latent files: both ages of the format, and what is said about files that are something else."""

import os
import stat
from pathlib import Path

import pytest
import torch
from exact_vae.vae_model.files.latents import read_latent, write_latent
from safetensors import safe_open
from safetensors.torch import save_file


@pytest.fixture
def z() -> torch.Tensor:
    return torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(0))


def test_round_trip_is_exact(tmp_path: Path, z: torch.Tensor) -> None:
    write_latent(z, tmp_path / "a.latent")
    assert torch.equal(read_latent(tmp_path / "a.latent"), z)


def test_the_file_has_the_two_keys_of_comfyui(tmp_path: Path, z: torch.Tensor) -> None:
    # The two names and the empty marker are what ComfyUI's LoadLatent looks for.
    write_latent(z.to(torch.bfloat16).permute(0, 1, 3, 2), tmp_path / "a.latent", {"prompt": "{}"})
    with safe_open(tmp_path / "a.latent", framework="pt") as file:
        assert set(file.keys()) == {"latent_tensor", "latent_format_version_0"}
        assert file.get_tensor("latent_tensor").dtype == torch.float32
        assert file.get_tensor("latent_tensor").shape == (2, 4, 5, 6)
        assert file.get_tensor("latent_format_version_0").numel() == 0
        assert file.metadata() == {"prompt": "{}"}


def test_clips_come_back(tmp_path: Path, z: torch.Tensor) -> None:
    clip = z[None].movedim(1, 2)  # (1, 4, 2, 6, 5)
    write_latent(clip, tmp_path / "clip.latent")
    assert torch.equal(read_latent(tmp_path / "clip.latent"), clip)


def test_the_older_format_is_rescaled(tmp_path: Path, z: torch.Tensor) -> None:
    save_file({"latent_tensor": z * 0.18215}, tmp_path / "old.latent")
    # One rounding when it was scaled and one when it is scaled back.
    torch.testing.assert_close(read_latent(tmp_path / "old.latent"), z, rtol=3e-7, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types_become_float32(tmp_path: Path, z: torch.Tensor, dtype: torch.dtype) -> None:
    save_file({"latent_tensor": z.to(dtype), "latent_format_version_0": torch.empty(0)}, tmp_path / "a.latent")
    assert torch.equal(read_latent(tmp_path / "a.latent"), z.to(dtype).float())


def test_what_was_read_survives_the_file(tmp_path: Path, z: torch.Tensor) -> None:
    write_latent(z, tmp_path / "a.latent")
    read = read_latent(tmp_path / "a.latent")
    write_latent(torch.zeros_like(z), tmp_path / "a.latent")
    assert torch.equal(read, z)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no permission bits")
def test_others_may_read_the_file_as_usual(tmp_path: Path, z: torch.Tensor) -> None:
    (tmp_path / "ordinary").touch()
    write_latent(z, tmp_path / "a.latent")
    assert stat.S_IMODE((tmp_path / "a.latent").stat().st_mode) == stat.S_IMODE((tmp_path / "ordinary").stat().st_mode)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^latent: expected a file, got .*none\.latent: no such file$"):
        read_latent(tmp_path / "none.latent")
    with pytest.raises(ValueError, match=r"^latent: expected a file"):
        read_latent(tmp_path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "a complete safetensors file"),
        (b"not safetensors at all", "a file that encode or SaveLatent wrote"),
        (b"\xff" * 64, "a file that encode or SaveLatent wrote"),
    ],
)
def test_not_safetensors(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "a.latent").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^latent: expected {expected}, got .*a\.latent: [^\n]*$") as caught:
        read_latent(tmp_path / "a.latent")
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("kept", [4, 40, 200])
def test_truncated(tmp_path: Path, z: torch.Tensor, kept: int) -> None:
    write_latent(z, tmp_path / "a.latent")
    (tmp_path / "a.latent").write_bytes((tmp_path / "a.latent").read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"^latent: expected a complete safetensors file"):
        read_latent(tmp_path / "a.latent")


def test_a_missing_key_lists_those_there_are(tmp_path: Path) -> None:
    save_file({"decoder.weight": torch.zeros(1), "encoder.weight": torch.zeros(1)}, tmp_path / "a.latent")
    with pytest.raises(
        ValueError, match=r"^latent: expected the key latent_tensor, got decoder\.weight, encoder\.weight in"
    ):
        read_latent(tmp_path / "a.latent")
    save_file({f"key{i:02}": torch.zeros(1) for i in range(20)}, tmp_path / "a.latent")
    with pytest.raises(ValueError, match=r"key07, \.\.\. in"):
        read_latent(tmp_path / "a.latent")


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (torch.zeros(4, 8, 8), r"expected \(B, C, h, w\), or .* of a clip, none of them 0, got \(4, 8, 8\)"),
        (torch.zeros(1, 4, 0, 8), r"none of them 0, got \(1, 4, 0, 8\)"),
        (torch.zeros(1, 4, 0, 8, 8), r"none of them 0, got \(1, 4, 0, 8, 8\)"),
        (torch.zeros(1, 4, 8, 8, dtype=torch.int32), r"expected floating-point values, got torch\.int32"),
    ],
)
def test_wrong_shape_or_type_is_refused_in_both_directions(tmp_path: Path, tensor: torch.Tensor, text: str) -> None:
    save_file({"latent_tensor": tensor, "latent_format_version_0": torch.empty(0)}, tmp_path / "a.latent")
    with pytest.raises(ValueError, match=text):
        read_latent(tmp_path / "a.latent")
    with pytest.raises(ValueError, match=text):
        write_latent(tensor, tmp_path / "b.latent")
    assert not (tmp_path / "b.latent").exists()


def test_writing_where_nothing_can_be_written(tmp_path: Path, z: torch.Tensor) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"^output: expected a writable folder"):
        write_latent(z, tmp_path / "file" / "a.latent")
