"""Truncated, forged and hostile files: refused in one line, without running their code or trusting their sizes."""

import json
import pickle
import pickletools
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae.vae_model.checkpoint.load import load_model
from exact_vae.vae_model.errors import VAEFileError
from torch import Tensor

PICKLES = [".pt", ".pth", ".ckpt", ".bin"]


def refusal(source: Any) -> str:
    """The one line that loading `source` ends in."""
    with pytest.raises(VAEFileError) as caught:
        load_model(source)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{source}: expected ")
    return text


def write_safetensors(path: Path, header: object, data: bytes = b"") -> Path:
    """A file with any header, true or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_a_file_cut_off_within_its_data(tmp_path: Path, small_file: Path) -> None:
    content = small_file.read_bytes()
    for size in (len(content) - 1, len(content) // 2, 8 + int.from_bytes(content[:8], "little")):
        (tmp_path / "cut.safetensors").write_bytes(content[:size])
        assert refusal(tmp_path / "cut.safetensors") == (
            f"{tmp_path / 'cut.safetensors'}: expected {len(content)} bytes of safetensors, found {size}: "
            "the file is truncated, download it again"
        )


@pytest.mark.parametrize("size", [1, 7, 8, 9, 100, 5000])
def test_a_file_cut_off_within_its_header(tmp_path: Path, small_file: Path, size: int) -> None:
    (tmp_path / "cut.safetensors").write_bytes(small_file.read_bytes()[:size])
    text = refusal(tmp_path / "cut.safetensors")
    assert " of safetensors, found " in text
    assert text.endswith(f"found {size}{' bytes' if size < 9 else ''}: the file is truncated, download it again")


HEADERS: dict[str, object] = {
    "no dictionary": [1, 2],
    "null": None,
    "deep": b"[" * 100_000,
    "text for offsets": {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, "x"]}},
    "nothing for offsets": {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, None]}},
    "infinite offsets": b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1e999]}}',
    "one offset": {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}},
    "negative offsets": {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, -4]}},
    "overlap": {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"},
    "not text": b"\xff\xfe{}",
}


@pytest.mark.parametrize("name", HEADERS)
def test_forged_headers(tmp_path: Path, name: str) -> None:
    refusal(write_safetensors(tmp_path / "forged.safetensors", HEADERS[name], b"\0" * 4))


def grown_bytes(run: Callable[[], object]) -> int:
    """The most that Python's allocators held during the run; tensors of this test would be mapped or refused."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("end", [4, 360_000_000_000, 2**62])
def test_a_declared_size_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: int) -> None:
    """A tensor of 360 GB in a file of 200 bytes: nothing is set aside for it, neither by Python nor by torch."""
    header = {"decoder.conv_in.weight": {"dtype": "F32", "shape": [100_000, 100_000, 3, 3], "data_offsets": [0, end]}}
    path = write_safetensors(tmp_path / "huge.safetensors", header, b"\0" * 4)
    for maker in ("empty", "zeros", "frombuffer"):
        monkeypatch.setattr(torch, maker, lambda *a, **k: pytest.fail("a tensor was made"))
    texts: list[str] = []
    assert grown_bytes(lambda: texts.append(refusal(path))) < 2_000_000  # what an error and its traceback take
    right = "the file is truncated" if end == 360_000_000_000 else "expected 360000000000 bytes for decoder.conv_in"
    assert right in texts[0]


def test_a_declared_header_is_not_believed(tmp_path: Path) -> None:
    for size in (10**6, 10**9, 2**63, 2**64 - 1):
        (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", size) + b"{}")
        assert grown_bytes(lambda: refusal(tmp_path / "a.safetensors")) < 2_000_000


class Touch:
    """An object whose unpickling would make a file."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> Any:
        return Path.touch, (self.sentinel,)


@pytest.mark.parametrize("suffix", PICKLES)
@pytest.mark.parametrize("form", ["zip", "legacy", "bare"])
def test_code_in_a_pickle_is_not_run(tmp_path: Path, state: dict[str, Tensor], suffix: str, form: str) -> None:
    sentinel, path = tmp_path / "sentinel", tmp_path / f"vae{suffix}"
    content = {"decoder.conv_in.weight": state["decoder.conv_in.weight"], "callbacks": Touch(sentinel)}
    if form == "bare":
        path.write_bytes(pickle.dumps(Touch(sentinel)))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    text = refusal(path)
    assert "found objects that are not weights; their code was not run: get the .safetensors version" in text
    assert not sentinel.exists()
    if form == "zip":  # the trap is armed: an unpickler without restrictions springs it
        torch.load(path, weights_only=False)
        assert sentinel.exists()


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_honest_pickles_load(tmp_path: Path, state: dict[str, Tensor], form: str) -> None:
    path = tmp_path / "vae.ckpt"
    torch.save({"state_dict": {"state_dict": state}, "step": 5}, path, _use_new_zipfile_serialization=form == "zip")
    loaded = load_model(path, config={"norm_num_groups": 8}).model.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def repack(source: Path, target: Path, compression: int) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry.filename))


def test_a_compressed_archive_holds_the_same_weights(tmp_path: Path, state: dict[str, Tensor]) -> None:
    """Mapped into memory as it is, its compressed bytes would be taken for numbers."""
    torch.save(state, tmp_path / "plain.pt")
    repack(tmp_path / "plain.pt", tmp_path / "small.pt", zipfile.ZIP_DEFLATED)
    loaded = load_model(tmp_path / "small.pt").model.state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


@pytest.mark.parametrize("suffix", PICKLES)
def test_a_zip_bomb_is_not_unpacked(tmp_path: Path, suffix: str) -> None:
    torch.save({"decoder.conv_in.weight": torch.zeros(64, 4, 3, 3)}, tmp_path / "plain.pt")
    path = tmp_path / f"bomb{suffix}"
    repack(tmp_path / "plain.pt", path, zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("plain/data/1", bytes(50_000_000))
    assert path.stat().st_size < 100_000
    texts: list[str] = []
    assert grown_bytes(lambda: texts.append(refusal(path))) < 2_000_000
    assert "expected at most 20 times its size when unpacked, found 500" in texts[0]
    assert texts[0].endswith(": this is no weight file, do not use it")


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999])
def test_cut_off_pickles(tmp_path: Path, state: dict[str, Tensor], form: str, share: float) -> None:
    path = tmp_path / "vae.pt"
    torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert "download it again" in refusal(path)


@pytest.mark.parametrize("content", [[1, 2], 5, "text", torch.zeros(3)])
def test_pickles_of_something_else(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "a.pt")
    kind = type(content).__name__
    assert refusal(tmp_path / "a.pt") == (
        f"{tmp_path / 'a.pt'}: expected a state dict, found {kind}: choose a checkpoint of weights"
    )


@pytest.mark.parametrize("content", [{}, {"step": 5}, {"state_dict": {"a": "b"}}])
def test_pickles_without_tensors(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "a.pt")
    assert "expected named tensors, found none: choose a checkpoint of weights" in refusal(tmp_path / "a.pt")


def test_a_pickle_that_holds_itself(tmp_path: Path) -> None:
    loop: dict[str, Any] = {}
    loop["state_dict"] = loop
    torch.save(loop, tmp_path / "a.pt")
    assert "expected named tensors, found none" in refusal(tmp_path / "a.pt")


def test_a_huge_tensor_over_one_stored_number(tmp_path: Path, state: dict[str, Tensor]) -> None:
    """Expanded, not stored: it would only become 36 GB when the weights are converted."""
    torch.save({**state, "decoder.conv_in.weight": torch.zeros(1).expand(10**5, 10**4, 3, 3)}, tmp_path / "a.pt")
    assert "expected dense tensors, found 'decoder.conv_in.weight' sparse or expanded" in refusal(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{", '{"latent_channels": 4, "norm_num_groups": [8]}', '"a"', "\udcff"]
)
def test_a_broken_config_beside_the_weights_does_no_harm(tmp_path: Path, small_file: Path, text: str) -> None:
    """The weight file's own header says what the broken file cannot."""
    (tmp_path / "vae.safetensors").write_bytes(small_file.read_bytes())
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert load_model(tmp_path / "vae.safetensors").config.num_groups == 8  # type: ignore[union-attr]


def test_numbers_of_another_type_than_the_archive_holds(tmp_path: Path, state: dict[str, Tensor]) -> None:
    """float32 declared as float16 needs half the bytes there are: read like that, every weight would be noise."""
    torch.save(state, tmp_path / "sound.pt")
    with zipfile.ZipFile(tmp_path / "sound.pt") as sound, zipfile.ZipFile(tmp_path / "a.pt", "w") as changed:
        for entry in sound.infolist():
            content = sound.read(entry)
            if entry.filename.endswith("data.pkl"):
                assert b"FloatStorage" in content
                content = content.replace(b"FloatStorage", b"HalfStorage")
            changed.writestr(entry, content)
    text = refusal(tmp_path / "a.pt")
    assert "expected as many numbers as it declares, found others (" in text
    assert text.endswith(": get another version of the file, this one was written so")


def test_the_list_of_storages_is_looked_through_too(tmp_path: Path, state: dict[str, Tensor]) -> None:
    """The fifth pickle of a file from before torch 1.6; a text of 2 GB was asked for, in a file of 5 MB."""
    path = tmp_path / "a.pt"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    place = 0
    for _ in range(4):
        *_, (_, _, last) = pickletools.genops(content[place:])
        place += last + 1
    assert content[place : place + 2] == b"\x80\x02"
    path.write_bytes(content[: place + 2] + b"X" + struct.pack("<I", 2**31) + content[place + 2 :])
    assert grown_bytes(lambda: refusal(path)) < 20_000_000
    path.write_bytes(content)
    assert load_model(path).config
