"""Sound checkpoints of every family and layout, damaged at random: refused in one clean line, or loaded whole.

`fuzz_watch.check` says what a case is held to: the form of the error, every tensor that was given and no other in the
model, both halves run, time, and memory. 10,000 cases, with their number, failures and total time at the end:

    pytest tests/checkpoint/test_fuzz_files.py --hypothesis-profile=fuzz-10000
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import pytest
import torch
from exact_vae.tests.checkpoint.fuzz_bases import CHOICES, Base, make_base
from exact_vae.tests.checkpoint.fuzz_damage import (
    Draw,
    damage_archive,
    damage_bytes,
    damage_header,
    damage_pickle,
    damage_state,
    split_legacy,
)
from exact_vae.tests.checkpoint.fuzz_watch import TALLY, check
from exact_vae.vae_model.checkpoint.load import load_model
from exact_vae.vae_model.families.table import all_layouts
from exact_vae.vae_model.files.pickles import unpickle
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save
from torch import Tensor

# A profile named on the command line counts; the ordinary run is short.
NAMED = settings.get_current_profile_name() == "fuzz-10000"
CASES = settings(
    max_examples=settings().max_examples if NAMED else 20,
    deadline=None,  # `check` has one, in CPU time
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # a case is a handful of draws; making it smaller takes long
    suppress_health_check=list(HealthCheck),
)

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # torch tells of formats that it will stop reading; these are the damaged files' affair.
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def _report(request: pytest.FixtureRequest) -> Iterator[None]:
    base = make_base("VQ-f8", "ldm")
    assert base is not None
    load_model(dict(base.tensors), config=base.settings)  # torch's first use of its meta device takes seconds
    yield
    with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{TALLY.line()}", flush=True)


def draw_base(draw: Draw) -> Base:
    base = None
    while base is None:
        base = make_base(*draw(st.sampled_from(CHOICES)))
    return base


def draw_settings(draw: Draw, base: Base) -> dict[str, str]:
    """What the base needs, or odd values for what no shape tells."""
    if draw(st.integers(0, 3)):
        return dict(base.settings)
    names = ["norm_num_groups", "vae_scale", "vae_shift", "act_fn", "norm_type", "batch_norm_eps", "patch_size", "x"]
    values = st.one_of(
        st.text(max_size=5),
        st.sampled_from(
            ["nan", "inf", "0", "-1", "4", "1e999", "9" * 5000, "a\nb", "silu", "\N{ARABIC-INDIC DIGIT FOUR}"]
        ),
    )
    names += ["merge_strategy", "upsample_fn", "upsampling_scaling_factor", "latent_magnitude", "latent_format"]
    names += ["encoder_norm_num_groups", "dropout", "tanh_out", "give_pre_end", "double_z", "force_upcast"]
    return draw(st.dictionaries(st.sampled_from(names), values, max_size=3))


def storable(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in state.items()}


@cache
def as_safetensors(base: Base) -> bytes:
    return save(dict(base.tensors), {"format": "pt", **base.settings})


@cache
def as_pickle(base: Base, folder: Path, zipped: bool, beside: bool) -> bytes:
    """`beside`: with objects beside the weights, which are read with stand-ins."""
    path = folder / "sound.pt"
    objects = {"args": Namespace(lr=1), "best": np.float64(1), "path": Path("a")} if beside else {}
    content = {"state_dict": dict(base.tensors), "step": 3, **objects}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path.read_bytes()


def read_again(path: Path) -> list[dict[str, Tensor]]:
    return [load_file(path)]


def unpickle_again(path: Path) -> list[dict[str, Tensor]]:
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, AttributeError):
        # Objects beside the weights, and float8 in the old format, which torch writes and does not read: only we do.
        content, _ = unpickle(path, path.read_bytes()[:512])
    while isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    return [in_a_row(content)]


def in_a_row(content: Mapping[Any, Any], way: str = "") -> dict[str, Tensor]:
    """The tensors of dictionaries in dictionaries, named by their way down."""
    tensors: dict[str, Tensor] = {}
    for key, value in content.items():
        if isinstance(value, Tensor):
            tensors[f"{way}{key}"] = value
        elif isinstance(value, Mapping):
            tensors |= in_a_row(value, f"{way}{key}.")
    return tensors


def test_every_layout_of_every_family_is_among_the_bases() -> None:
    made = [base for base in (make_base(*choice) for choice in CHOICES) if base is not None]
    assert {(base.family, base.layout) for base in made} == {(row.family, row.name) for row in all_layouts()}
    for base in made:
        loaded = check(dict(base.tensors), lambda base=base: [base.tensors], config=base.settings)
        assert loaded is not None
        assert (loaded.family, loaded.layouts) == (base.family, (base.layout,))


@CASES
@given(data=st.data())
def test_changed_state_dicts(data: st.DataObject) -> None:
    base = draw_base(data.draw)
    states = [damage_state(data.draw, base.tensors)]
    if not data.draw(st.integers(0, 4)):
        states.append(damage_state(data.draw, draw_base(data.draw).tensors))
    before = [{key: (t.shape, t.dtype) for key, t in state.items()} for state in states]
    source: Any = states if len(states) > 1 else states[0]
    check(source, lambda: states, config=draw_settings(data.draw, base))
    assert [{key: (t.shape, t.dtype) for key, t in state.items()} for state in states] == before


@CASES
@given(data=st.data())
def test_changed_headers(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "changed.safetensors"
    path.write_bytes(damage_header(data.draw, as_safetensors(draw_base(data.draw))))
    check(path, lambda: read_again(path))


@CASES
@given(data=st.data())
def test_changed_bytes(tmp_path: Path, data: st.DataObject) -> None:
    content = as_safetensors(draw_base(data.draw))
    header = 8 + int.from_bytes(content[:8], "little")
    path = tmp_path / "changed.safetensors"
    path.write_bytes(damage_bytes(data.draw, content, data.draw(st.sampled_from([8, header, len(content)]))))
    check(path, lambda: read_again(path))


@CASES
@given(data=st.data())
def test_changed_files_and_settings(tmp_path: Path, data: st.DataObject) -> None:
    """Sound files of damaged state dicts, odd fields in the header and in a config.json beside it."""
    base = draw_base(data.draw)
    state = {k: t for k, t in damage_state(data.draw, base.tensors, 2).items() if t.layout == torch.strided}
    state = {k: t.detach() for k, t in state.items() if not t.is_meta and t.nbytes <= t.untyped_storage().nbytes()}
    state = {k.encode(errors="replace").decode(): t for k, t in storable(state).items()}
    path, beside = tmp_path / "changed.safetensors", tmp_path / "config.json"
    path.write_bytes(save(state, {k: v.replace("\udcff", "") for k, v in draw_settings(data.draw, base).items()}))
    fields: dict[str, Any] = {"latent_channels": 4, **draw_settings(data.draw, base)}
    text = json.dumps(fields | data.draw(st.sampled_from([{}, {"norm_num_groups": [4]}, {"act_fn": None}])))
    beside.write_text(data.draw(st.sampled_from([text, text[:-1], "[]", "", '{"latent_channels": 4}'])), "utf-8")
    check(path, lambda: read_again(path))


@CASES
@given(data=st.data())
def test_changed_pickles(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    base, path = draw_base(data.draw), tmp_path / data.draw(st.sampled_from(["changed.pt", "changed.ckpt"]))
    zipped, kind = data.draw(st.booleans()), data.draw(st.sampled_from(["state", "structure", "structure", "bytes"]))
    if kind == "state":
        state = {k.encode(errors="replace").decode(): t for k, t in damage_state(data.draw, base.tensors, 2).items()}
        torch.save(state, path, _use_new_zipfile_serialization=zipped)
    else:
        content = as_pickle(base, tmp_path_factory.getbasetemp(), zipped, data.draw(st.booleans()))
        if kind == "bytes":
            content = damage_bytes(data.draw, content, data.draw(st.sampled_from([200, len(content)])))
        elif zipped:
            content = damage_archive(data.draw, content)
        else:
            before, pickled, after = split_legacy(content)
            content = before + damage_pickle(data.draw, pickled) + after
        path.write_bytes(content)
    check(path, lambda: unpickle_again(path), config=base.settings)
