"""Valid files changed at random: they load with the meaning they state, or end in VAEFileError and nothing else."""

import json
import struct
from pathlib import Path

import pytest
import torch
from exact_vae.vae_model.autoencoder import build_kl
from exact_vae.vae_model.config import KLConfig, LevelsConfig
from exact_vae.vae_model.errors import VAEFileError
from exact_vae.vae_model.load import LoadedModel, load_model
from exact_vae.vae_model.save import save
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest autoencoder that has every kind of layer: f2, widths 8 and 16."""
    levels = LevelsConfig(8, (8, 16), 1)
    path = tmp_path_factory.mktemp("fuzz") / "tiny.safetensors"
    save(build_kl(KLConfig(2, 2, levels, levels, num_groups=8)), path)
    return path


@pytest.fixture(scope="module")
def state(tiny_file: Path) -> dict[str, Tensor]:
    return load_file(tiny_file)


def load_or_refuse(source: Path | dict[str, Tensor]) -> LoadedModel | None:
    """The model, or None for a refusal in one line."""
    try:
        return load_model(source)
    except VAEFileError as error:
        text = str(error)
    assert "\n" not in text
    assert len(text) < 2000
    return None


def assert_holds(loaded: LoadedModel, given: dict[str, Tensor]) -> None:
    """Every tensor that was given is in the model, bit for bit."""
    own = loaded.model.state_dict()
    prefix = loaded.prefix
    assert {prefix + key for key in own} <= given.keys()
    for key, tensor in own.items():
        theirs = given[prefix + key].reshape(tensor.shape)
        assert torch.equal(tensor.view(torch.uint8), theirs.contiguous().view(torch.uint8))  # bits: NaN equals itself


@FUZZ
@given(data=st.data())
def test_changed_bytes(tiny_file: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(tiny_file.read_bytes())
    header_end = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        where = data.draw(st.integers(0, min(header_end, len(content)) - 1))
        kind = data.draw(st.sampled_from(["flip", "insert", "delete", "truncate", "length"]))
        if kind == "flip":
            content[where] ^= data.draw(st.integers(1, 255))
        elif kind == "insert":
            content[where:where] = data.draw(st.binary(min_size=1, max_size=9))
        elif kind == "delete":
            del content[where : where + data.draw(st.integers(1, 9))]
        elif kind == "truncate":
            del content[data.draw(st.integers(1, max(1, len(content)))) :]
        else:
            content[:8] = struct.pack("<Q", data.draw(st.integers(0, 2**64 - 1)))
        content = content or bytearray(b"\0")
    path = tmp_path / "changed.safetensors"
    path.write_bytes(bytes(content))
    loaded = load_or_refuse(path)
    if loaded is not None:
        assert_holds(loaded, load_file(path))


@FUZZ
@given(data=st.data())
def test_changed_headers(tiny_file: Path, tmp_path: Path, data: st.DataObject) -> None:
    """The header stays JSON, so that more of it gets past the first check."""
    content = tiny_file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    names = sorted(header.keys() - {"__metadata__"})
    values = st.one_of(
        st.none(), st.integers(-(2**40), 2**70), st.text(max_size=3), st.lists(st.integers(-1, 2**40), max_size=3)
    )
    for _ in range(data.draw(st.integers(1, 2))):
        entry = header[data.draw(st.sampled_from(names))]
        field = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", "extra"]))
        entry[field] = data.draw(st.one_of(st.sampled_from(["F16", "I32", "BOOL", "F64", "U64", "F8_E4M3"]), values))
    header["__metadata__"] = data.draw(
        st.one_of(
            st.just({"norm_num_groups": "8"}),
            st.dictionaries(st.sampled_from(["norm_num_groups", "vae_scale"]), st.text(max_size=4)),
        )
    )
    text = json.dumps(header).encode()
    path = tmp_path / "changed.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])
    loaded = load_or_refuse(path)
    if loaded is not None:
        assert_holds(loaded, load_file(path))


SHAPES = st.lists(st.integers(0, 20), max_size=5).map(tuple)
DTYPES = [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.complex64, torch.uint8]


@FUZZ
@given(data=st.data())
def test_changed_state_dicts(state: dict[str, Tensor], data: st.DataObject) -> None:
    changed = dict(state)
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from(sorted(changed)))
        kind = data.draw(st.sampled_from(["drop", "rename", "reshape", "dtype", "add", "prefix", "swap"]))
        if kind == "drop":
            del changed[key]
        elif kind == "rename":
            changed[data.draw(st.text(max_size=30))] = changed.pop(key)
        elif kind == "reshape":
            changed[key] = torch.zeros(data.draw(SHAPES))
        elif kind == "dtype":
            changed[key] = torch.ones(changed[key].shape, dtype=data.draw(st.sampled_from(DTYPES)))
        elif kind == "add":
            extra = ["0.weight", "1.weight", "vae_scale", "vae_shift", "decoder.up.9.block.0.conv1.weight", "loss.x"]
            changed[data.draw(st.sampled_from(extra))] = torch.zeros(data.draw(SHAPES))
        elif kind == "prefix":
            changed = {f"first_stage_model.{name}": tensor for name, tensor in changed.items()}
        else:
            other = data.draw(st.sampled_from(sorted(changed)))
            changed[key], changed[other] = changed[other], changed[key]
    before = {name: (tensor.shape, tensor.dtype) for name, tensor in changed.items()}
    loaded = load_or_refuse(changed)
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in changed.items()} == before
    if loaded is not None:
        assert_holds(loaded, changed)
        assert all(tensor.is_floating_point() for tensor in loaded.model.state_dict().values())
