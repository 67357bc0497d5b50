"""What a safetensors file with a wrong header is told: cut off, another kind of file, or which value is wrong where."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from exact_vae.vae_model.errors import VAEFileError
from exact_vae.vae_model.files.weights import open_weights

SOUND: dict[str, Any] = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
WRITTEN_SO = "get another version of the file, this one was written so"


def changed(**fields: Any) -> dict[str, Any]:
    return {"a": {**SOUND["a"], **fields}}


OFFSETS = "begin and end as data_offsets of a"
FIELDS = "data_offsets, dtype, shape of a"
VALUES: dict[str, tuple[Any, str, str]] = {
    "text for an offset": (changed(data_offsets=[0, "x"]), OFFSETS, '[0, "x"]'),
    "nothing for an offset": (changed(data_offsets=[0, None]), OFFSETS, "[0, null]"),
    "one offset": (changed(data_offsets=[0]), OFFSETS, "[0]"),
    "a negative offset": (changed(data_offsets=[0, -4]), OFFSETS, "[0, -4]"),
    "the end before the beginning": (changed(data_offsets=[4, 0]), OFFSETS, "[4, 0]"),
    "a gap": (changed(data_offsets=[1, 5]), "a to begin at byte 0", "1 in its data_offsets"),
    "an overlap": ({**SOUND, "b": SOUND["a"]}, "b to begin at byte 4", "0 in its data_offsets"),
    "another size": (changed(shape=[2]), "8 bytes for a, F32 of shape [2]", "4 in its data_offsets"),
    "another kind": (changed(dtype="F64"), "8 bytes for a, F64 of shape [1]", "4 in its data_offsets"),
    "no kind": (changed(dtype=5), "a kind of numbers such as F16 as dtype of a", "5"),
    "a side below 0": (changed(shape=[-1]), "whole numbers as shape of a", "[-1]"),
    "half a side": (changed(shape=[0.5]), "whole numbers as shape of a", "[0.5]"),
    "no sides": (changed(shape="1"), "whole numbers as shape of a", "1"),
    "a tensor of nothing": ({"a": 5}, FIELDS, "5"),
    "a tensor of one field": ({"a": {"dtype": "F32"}}, FIELDS, '{"dtype": "F32"}'),
    "a number among the facts": ({**SOUND, "__metadata__": {"step": 5}}, "text in __metadata__.step", "5"),
    "a list of facts": ({**SOUND, "__metadata__": [1]}, "text in __metadata__", "[1]"),
}


def write(path: Path, header: Any, data: bytes = bytes(4)) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(VAEFileError) as caught:
        open_weights(path)
    return str(caught.value)


@pytest.mark.parametrize("name", VALUES)
def test_the_wrong_value_is_named_and_the_file_not_to_be_downloaded_again(tmp_path: Path, name: str) -> None:
    header, expected, found = VALUES[name]
    path = write(tmp_path / "a.safetensors", header)
    assert refusal(path) == f"{path}: expected {expected}, found {found}: {WRITTEN_SO}"


def test_the_sound_header_of_these_is_read(tmp_path: Path) -> None:
    assert open_weights(write(tmp_path / "a.safetensors", SOUND)).shapes == {"a": (1,)}


def test_a_file_that_is_cut_off_or_too_long(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.safetensors", SOUND).read_bytes()
    path = tmp_path / "b.safetensors"
    for size in (3, 8, 9, 40, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert refusal(path).endswith(": the file is truncated, download it again")
    path.write_bytes(whole + b"more")
    assert refusal(path) == (
        f"{path}: expected {len(whole)} bytes, as its header tells, found {len(whole) + 4}: "
        "download it again, or get another version"
    )


@pytest.mark.parametrize("content", [b"SQLite format 3\0and more", b"a text of some length", bytes(100)])
def test_another_kind_of_file_under_this_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    text = refusal(path)
    assert text.startswith(f"{path}: expected safetensors, found another kind of file (")
    assert text.endswith("): get the VAE as .safetensors")


def test_a_damaged_header(tmp_path: Path) -> None:
    for damaged in (b'{"a": {"dtype" "F32"}}', b'{"a\xff": 1}', b'{"a":' + b"[" * 100_000):
        text = refusal(write(tmp_path / "a.safetensors", damaged))
        assert text.endswith("expected a header in JSON, found damage in it: download the file again")


def test_a_header_of_hostile_sizes_takes_no_time(tmp_path: Path) -> None:
    """A shape of 100,000 sides, whose product would have 6 million digits."""
    path = write(tmp_path / "a.safetensors", changed(shape=[2**63] * 100_000))
    assert "expected whole numbers as shape of a, found [9223372036854775808, " in refusal(path)
    assert len(refusal(path)) < 400


def test_a_config_beside_it_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", SOUND)
    assert open_weights(path).notes == ()
    (tmp_path / "config.json").write_text('{"latent_channels": 4, ', encoding="utf-8")
    assert open_weights(path).notes == ("config.json beside it could not be read, its settings are not known",)
    (tmp_path / "config.json").write_text('{"hidden_size": 4}', encoding="utf-8")  # another model's
    assert open_weights(path).notes == ()
