"""Objects beside the weights: the weights are read, nothing is imported or called, what was refused stays refused."""

from __future__ import annotations

import argparse
import builtins
import importlib
import io
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exact_vae.tests.checkpoint.file_kinds import foreign
from exact_vae.vae_model.checkpoint.load import load_model
from exact_vae.vae_model.errors import VAEFileError
from exact_vae.vae_model.files.stand_ins import StandIn, beside_weights, unlisted
from exact_vae.vae_model.files.unpickler import Unpickler
from torch import Tensor

GROUPS = {"norm_num_groups": 8}
FORMS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def refusal(source: Any) -> str:
    """The one line that loading `source` ends in."""
    with pytest.raises(VAEFileError) as caught:
        load_model(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def unpickled(content: bytes) -> Any:
    """What a pickle without storages holds."""
    return Unpickler(io.BytesIO(content), lambda key, size, dtype: pytest.fail("read"), set()).load()


class Touch:
    """An object whose unpickling would make a file."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> Any:
        return Path.touch, (self.sentinel,)


@FORMS
def test_objects_are_left_out_with_a_note(tmp_path: Path, state: dict[str, Tensor], zipped: bool) -> None:
    content = {"state_dict": state, "args": argparse.Namespace(lr=1), "best": np.float64(2)}
    torch.save(content, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)
    loaded = load_model(tmp_path / "a.ckpt", config=GROUPS)
    assert loaded.notes == ("left out are objects beside the weights (argparse, numpy); nothing of them was run",)
    assert all(torch.equal(loaded.model.state_dict()[key], tensor) for key, tensor in state.items())


@FORMS
def test_every_kind_of_number_and_view(tmp_path: Path, state: dict[str, Tensor], zipped: bool) -> None:
    """Several tensors over one storage, with strides and offsets, parameters, 16 bits: as torch reads them."""
    shared = torch.randn(3, 70, 64)
    state["decoder.conv_in.bias"] = shared[1, 3]
    state["decoder.norm_out.bias"] = shared[2].t()[:32, 5]
    state["decoder.norm_out.weight"] = torch.nn.Parameter(state["decoder.norm_out.weight"])
    state["decoder.conv_out.bias"] = state["decoder.conv_out.bias"].bfloat16()
    state["encoder.conv_out.bias"] = state["encoder.conv_out.bias"].half()
    state["encoder.conv_in.bias"] = state["encoder.conv_in.bias"].double()
    for name, more in (("plain.pt", {}), ("beside.pt", {"args": argparse.Namespace(lr=1)})):
        torch.save({"model": state, **more}, tmp_path / name, _use_new_zipfile_serialization=zipped)
    plain, beside = (
        load_model(tmp_path / name, config=GROUPS).model.state_dict() for name in ("plain.pt", "beside.pt")
    )
    for key, tensor in plain.items():
        assert beside[key].dtype == tensor.dtype
        assert torch.equal(beside[key], tensor)


def test_numbers_stay_in_the_file_until_they_are_used(tmp_path: Path, state: dict[str, Tensor]) -> None:
    """As torch maps them; a change of them in memory does not reach the file."""
    path = tmp_path / "a.pt"
    torch.save({"model": state, "args": argparse.Namespace()}, path)
    before = path.read_bytes()
    loaded = load_model(path, config=GROUPS)
    for parameter in loaded.model.parameters():
        parameter.data.zero_()
    assert path.read_bytes() == before


@FORMS
def test_code_beside_objects_is_refused_as_ever(tmp_path: Path, state: dict[str, Tensor], zipped: bool) -> None:
    sentinel = tmp_path / "sentinel"
    content = {"model": state, "args": argparse.Namespace(lr=1), "callbacks": Touch(sentinel)}
    torch.save(content, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)
    text = refusal(tmp_path / "a.ckpt")
    assert "found objects that are not weights; their code was not run: get the .safetensors version" in text
    assert not sentinel.exists()


def test_a_class_of_one_s_own_is_named(tmp_path: Path, state: dict[str, Tensor]) -> None:
    with foreign("my_training.options", "Options") as (kind,):
        torch.save({"model": state, "options": kind()}, tmp_path / "a.pt")
    assert refusal(tmp_path / "a.pt") == (
        f"{tmp_path / 'a.pt'}: expected a pickle of tensors, found objects that are not weights; their code was not "
        "run: get the .safetensors version (it names my_training.options.Options), or have only the state dict saved"
    )


def test_nothing_is_imported(tmp_path: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    with foreign("omegaconf.dictconfig", "DictConfig") as (config,), foreign("easydict", "EasyDict") as (settings,):
        torch.save({"model": state, "config": config(), "more": settings()}, tmp_path / "a.pt")
    wanted: list[str] = []
    known = builtins.__import__

    def watch(name: str, *rest: Any, **more: Any) -> Any:
        wanted.append(name.partition(".")[0])
        return known(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", watch)
    assert "(easydict, omegaconf)" in load_model(tmp_path / "a.pt", config=GROUPS).notes[0]
    assert not {"omegaconf", "easydict"} & {*wanted, *sys.modules}


NAMES_REFUSED = [
    *(("os", "getcwd"), ("posix", "getcwd"), ("subprocess", "Popen"), ("builtins", "eval"), ("builtins", "getattr")),
    *(
        ("pathlib", "Path.touch"),
        ("argparse", "ArgumentParser"),
        ("numpy", "load"),
        ("numpy.core.multiarray", "fromfile"),
    ),
    *(("pytorch_lightning.callbacks", "helper"), ("omegaconf", "DictConfig.keys"), ("lightningx", "A")),
    *(("torch", "load"), ("torch.hub", "load"), ("torch._utils", "_rebuild_qtensor"), ("torch.optim", "Adam.step")),
    *(("functools", "partial"), ("__main__", "Options"), ("importlib", "import_module"), ("torch.nn", "Linear")),
]


@pytest.mark.parametrize("name", NAMES_REFUSED, ids=".".join)
def test_names_that_get_no_stand_in(name: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert unlisted({("argparse", "Namespace"), name}) == [".".join(name)]
    monkeypatch.setattr(importlib, "import_module", lambda *a: pytest.fail("imported"))
    content = b"\x80\x02c" + f"{name[0]}\n{name[1]}\n".encode() + b"."
    with pytest.raises(pickle.UnpicklingError, match="Unsupported GLOBAL"):
        unpickled(content)


def test_what_has_a_stand_in_becomes_one() -> None:
    names = {("numpy", "dtype"), ("collections", "OrderedDict"), ("torch._utils", "_rebuild_tensor_v2")}
    assert beside_weights(names) == ["numpy.dtype"]
    assert beside_weights(names - {("numpy", "dtype")}) == []
    content = pickle.dumps({"a": argparse.Namespace(x=1), "b": Path("x")}, protocol=2)
    made = unpickled(content)
    assert list(made) == ["a", "b"]
    assert all(isinstance(value, StandIn) for value in made.values())
    assert not vars(made["a"])  # the state is of no use, and not kept


ODD_OPERATIONS = {
    "a call of a number": b"\x80\x02K\x01)R.",
    "a call of a result": b"\x80\x02cargparse\nNamespace\n)R)R.",
    "a new object of a function": b"\x80\x02ctorch._utils\n_rebuild_parameter\n)\x81.",
    "a state of a function": b"\x80\x02ctorch._utils\n_rebuild_parameter\n}b.",
    "an item of a function": b"\x80\x02ctorch._utils\n_rebuild_parameter\nK\x01K\x01s.",
    "items of a number": b"\x80\x02K\x07(K\x01K\x01u.",
    "a list that is none": b"\x80\x02K\x07K\x01a.",
    "a set that is none": b"\x80\x04K\x07(K\x01\x90.",
    "another reference": b"\x80\x02(X\x06\x00\x00\x00moduleK\x01K\x01K\x01K\x01tQ.",
    "an old instance": b"(iargparse\nNamespace\n.",
    "a list for a flag": b"\x80\x02ctorch._utils\n_rebuild_parameter\n(K\x01])tR.",
    "a parameter that is none": b"\x80\x02ctorch._utils\n_rebuild_parameter\n(K\x01\x88NtR.",
    "a storage that is none": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00K\x01\x85K\x01\x85\x89)tR.",
}


@pytest.mark.parametrize("name", ODD_OPERATIONS)
def test_operations_that_no_checkpoint_needs(name: str) -> None:
    with pytest.raises((pickle.UnpicklingError, KeyError, AttributeError, TypeError)):
        unpickled(ODD_OPERATIONS[name])


def test_false_sizes_beside_objects(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save({"model": state, "args": argparse.Namespace()}, tmp_path / "sound.pt")
    with zipfile.ZipFile(tmp_path / "sound.pt") as sound, zipfile.ZipFile(tmp_path / "a.pt", "w") as changed:
        for entry in sound.infolist():
            content = sound.read(entry)
            if entry.filename.endswith("data.pkl"):
                content = content.replace(b"FloatStorage", b"HalfStorage")
            changed.writestr(entry, content)
    assert "expected as many numbers as it declares, found others" in refusal(tmp_path / "a.pt")


@FORMS
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_cut_off_files_with_objects(tmp_path: Path, state: dict[str, Tensor], zipped: bool, share: float) -> None:
    path = tmp_path / "a.pt"
    torch.save({"args": argparse.Namespace(), "model": state}, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert "download it again" in refusal(path)


@pytest.mark.parametrize("beside", [{}, {"args": argparse.Namespace(lr=1)}], ids=["plain", "with objects"])
def test_an_archive_without_its_version_is_damaged_whatever_it_holds(
    tmp_path: Path, state: dict[str, Tensor], beside: dict[str, Any]
) -> None:
    torch.save({"model": state, **beside}, tmp_path / "sound.pt")
    with zipfile.ZipFile(tmp_path / "sound.pt") as sound, zipfile.ZipFile(tmp_path / "a.pt", "w") as changed:
        for entry in sound.infolist():
            name = entry.filename.replace("/version", "/versionx")
            changed.writestr(name, sound.read(entry))
    text = refusal(tmp_path / "a.pt")
    assert "expected a pickle of tensors, found damage (" in text
    assert "miniz" not in text
    assert "PytorchStreamReader" not in text


def test_an_archive_that_is_overwritten_in_part_is_told_in_plain_words(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    """Between its pickle and its numbers, where only torch's reader looks: it would speak of its internals."""
    torch.save({"model": state}, tmp_path / "a.pt")
    content = (tmp_path / "a.pt").read_bytes()
    place = content.index(b"/byteorder")
    (tmp_path / "a.pt").write_bytes(content[: place - 40] + bytes(60) + content[place + 20 :])
    text = refusal(tmp_path / "a.pt")
    assert "found damage (a part of the archive is overwritten or missing): get the .safetensors version or" in text
