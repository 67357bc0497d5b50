"""What torch's files may hold: every kind of tensor as torch itself reads it, and nothing made before it is checked."""

from __future__ import annotations

import struct
import tracemalloc
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae.vae_model.errors import VAEFileError
from exact_vae.vae_model.files.pickles import unpickle
from torch import Tensor, nn

FORMS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def read(path: Path) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    return unpickle(path, path.read_bytes()[:512])


def refusal(path: Path) -> str:
    with pytest.raises(VAEFileError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def with_attribute(tensor: Tensor) -> Tensor:
    """As libraries mark tensors: torch writes these by way of their class."""
    tensor.is_initialized = True  # type: ignore[attr-defined]
    return tensor


X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
KINDS: dict[str, Callable[[], Any]] = {
    "views of one storage": lambda: {"a": X, "b": X[1:, ::2], "c": X.t()},
    "an attribute": lambda: {"a": with_attribute(X.clone())},
    "a parameter": lambda: {"a": nn.Parameter(X.clone())},
    "a parameter with an attribute": lambda: {"a": with_attribute(nn.Parameter(X.clone()))},
    "a buffer": lambda: {"a": nn.Buffer(X.clone())},
    "other numbers": lambda: {str(kind): (X * 9).to(kind) for kind in (torch.int8, torch.bool, torch.float64)},
    "complex numbers": lambda: {"a": torch.complex(X, X)},
    "no numbers": lambda: {"a": torch.empty(0), "b": torch.empty(0, 3), "c": X},
    "a module": lambda: nn.BatchNorm2d(3).state_dict(),
    "sizes, devices, bytes": lambda: {"a": X, "rest": [X.shape, X.device, X.dtype, b"ab", bytearray(b"ab"), {1, 2}]},
}


@FORMS
@pytest.mark.parametrize("kind", KINDS)
def test_as_torch_reads_it(kind: str, zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save(KINDS[kind](), path, _use_new_zipfile_serialization=zipped)
    found, _ = read(path)
    expected = torch.load(path, weights_only=True)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if isinstance(tensor, Tensor):
            assert (found[name].dtype, found[name].stride()) == (tensor.dtype, tensor.stride())
            assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
@FORMS
def test_eight_bits(kind: torch.dtype, zipped: bool, tmp_path: Path) -> None:
    """In the old format torch itself writes them and does not read them."""
    torch.save({"a": X.to(kind)}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    assert torch.equal(read(tmp_path / "a.pt")[0]["a"].float(), X.to(kind).float())


@FORMS
def test_sparse_and_empty_tensors_keep_their_shapes(zipped: bool, tmp_path: Path) -> None:
    content = {"coo": X.to_sparse(), "meta": X.to("meta")}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    found, _ = read(tmp_path / "a.pt")
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {"coo": (6, 4), "meta": (6, 4)}
    assert found["coo"].layout == torch.sparse_coo
    assert found["meta"].is_meta


def changed(folder: Path, change: Callable[[str, bytes], bytes], kind: Any = None) -> Path:
    """An archive whose files went through `change(name, content)`."""
    torch.save({"a": X} if kind is None else kind, folder / "sound.pt")
    with zipfile.ZipFile(folder / "sound.pt") as sound, zipfile.ZipFile(folder / "a.pt", "w") as other:
        for entry in sound.infolist():
            other.writestr(entry.filename, change(entry.filename, sound.read(entry)))
    return folder / "a.pt"


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.int64])
def test_the_other_order_of_bytes(kind: torch.dtype, tmp_path: Path) -> None:
    def swap(name: str, content: bytes) -> bytes:
        if name.endswith("/byteorder"):
            return b"big"
        width = kind.itemsize
        pieces = [content[at : at + width][::-1] for at in range(0, len(content), width)]
        return b"".join(pieces) if "/data/" in name else content

    path = changed(tmp_path, swap, {"a": (X * 9).to(kind)})
    assert torch.equal(read(path)[0]["a"], (X * 9).to(kind))


@pytest.mark.parametrize("name", ["bytearray", "Tensor", "FloatTensor", "FloatStorage", "UntypedStorage", "empty"])
def test_nothing_is_set_aside_for_a_number(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's restricted unpickler makes the first three of the size that they are asked for."""
    module = b"__builtin__" if name == "bytearray" else b"torch"
    number = b"\x8a\x08" + struct.pack("<q", 2 * 10**9)
    asked = b"\x80\x02}X\x01\0\0\0ac" + module + b"\n" + name.encode() + b"\n" + number + b"\x85Rs."
    path = changed(tmp_path, lambda file, content: asked if file.endswith("data.pkl") else content)
    for maker in ("empty", "zeros", "frombuffer"):
        monkeypatch.setattr(torch, maker, lambda *a, **k: pytest.fail("a tensor was made"))
    tracemalloc.start()
    try:
        if name == "bytearray":  # which may lie beside weights
            assert not any(isinstance(value, bytearray) for value in read(path)[0].values())
        else:
            assert "objects that are not weights; their code was not run" in refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("more", [1, 28, 2**30])
def test_a_storage_gets_no_bytes_of_its_neighbour(more: int, tmp_path: Path) -> None:
    """torch's own reader of mapped archives takes those that follow."""
    old, new = b"K\x18t", b"J" + struct.pack("<i", 24 + more) + b"t"

    def grow(name: str, content: bytes) -> bytes:
        assert not name.endswith("data.pkl") or old in content
        return content.replace(old, new) if name.endswith("data.pkl") else content

    text = refusal(changed(tmp_path, grow, {"a": X, "b": X + 1}))
    assert f"found others ({96 + 4 * more} bytes in data/0, there are 96)" in text


def test_old_files_with_false_beginnings_and_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"a": X}, path, _use_new_zipfile_serialization=False)
    sound = path.read_bytes()
    assert torch.equal(read(path)[0]["a"], X)
    path.write_bytes(sound.replace(b"\x8a\nl\xfc\x9c", b"\x8a\nl\xfc\x9d"))
    assert "found damage (it does not begin as torch writes it)" in refusal(path)
    place = len(sound) - 96 - 8
    assert sound[place : place + 8] == struct.pack("<q", 24)
    path.write_bytes(sound[:place] + struct.pack("<q", 12) + sound[place + 8 :])
    assert "found others (96 bytes in " in refusal(path)
    path.write_bytes(sound[:-5])
    assert refusal(path).endswith(": the file is truncated, download it again")
