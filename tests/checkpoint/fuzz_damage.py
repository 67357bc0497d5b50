"""Damage, drawn by hypothesis: to state dicts, to the headers and bytes of safetensors, to pickles and archives."""

from __future__ import annotations

import io
import json
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

Draw = Callable[[st.SearchStrategy[Any]], Any]

DTYPES = [
    *(torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.bool, torch.complex64, torch.uint8),
]
SHAPES = st.lists(st.integers(0, 20), max_size=5).map(tuple)
DIGITS = ["00", "01", "7", "99", "9" * 5000, "\N{ARABIC-INDIC DIGIT ZERO}", "-1", "1e3", " 0", "0_0"]
"""What may stand for a number in a name: some are numbers to Python, none but two to a layout."""
EXTRAS = [
    *(
        "0.weight",
        "1.weight",
        "vae_scale",
        "vae_shift",
        "decoder.up.9.block.0.conv1.weight",
        "loss.x",
        "bn.running_mean",
    ),
    *("quantize.embedding.weight", "decoder.layers.9999.weight", "decoder.mid.attn_1.to_qkv.weight", "conv_in\nweight"),
    *("quant_conv.bias", "bn.num_batches_tracked", "decoder.conv_in.conv.weight", "model.diffusion_model.x", "\udcff"),
]
PREFIXES = ["first_stage_model.", "vae.", "model.", "module.", "model.vae.module.", "x."]


def damage_state(draw: Draw, state: Mapping[str, Tensor], most: int = 3) -> dict[str, Tensor]:
    """A copy with up to `most` changes; the tensors given stay as they are."""
    changed = dict(state)
    for _ in range(draw(st.integers(1, most))):
        if changed:
            key = draw(st.sampled_from(sorted(changed)))
            changed = CHANGES[draw(st.sampled_from(sorted(CHANGES)))](draw, changed, key)
    return changed


def _rename(draw: Draw, state: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    """To anything, to another number, or to a name with a part missing; the tensor may also stay under the old one."""
    parts = key.split(".")
    where = draw(st.integers(0, len(parts) - 1))
    numbers = [place for place, part in enumerate(parts) if part.isdecimal()]
    if numbers and draw(st.booleans()):
        parts[draw(st.sampled_from(numbers))] = draw(st.sampled_from(DIGITS))
    elif draw(st.booleans()):
        del parts[where]
    else:
        parts[where] = draw(st.text(max_size=12))
    renamed = {".".join(parts): state[key]}
    return {**state, **renamed} if draw(st.booleans()) else {**{k: t for k, t in state.items() if k != key}, **renamed}


def _extra(draw: Draw, state: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    value = draw(st.sampled_from([0.0, 1.0, float("nan"), float("inf"), 1e30]))
    return {**state, draw(st.sampled_from(EXTRAS)): torch.full(draw(SHAPES), value)}


def _swap(draw: Draw, state: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    other = draw(st.sampled_from(sorted(state)))
    return {**state, key: state[other], other: state[key]}


def _strides(draw: Draw, state: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    """The same shape or the sides exchanged, out of order, expanded, sparse, or without numbers."""
    tensor = state[key]
    if tensor.layout != torch.strided or tensor.nbytes > tensor.untyped_storage().nbytes():
        return state
    kind = draw(st.sampled_from(["exchanged", "out of order", "expanded", "sparse", "meta", "gradient", "view"]))
    if kind == "exchanged":
        return {**state, key: tensor.movedim(0, -1) if tensor.ndim else tensor}
    if kind == "out of order":
        return {**state, key: tensor.movedim(0, -1).contiguous().movedim(-1, 0) if tensor.ndim else tensor}
    if kind == "expanded":
        return {**state, key: torch.zeros(()).expand(draw(st.sampled_from([tensor.shape, (10**6, 10**6, 3, 3)])))}
    if kind == "view" and not tensor.is_meta:
        return {**state, key: torch.cat([tensor.reshape(-1), torch.ones(3, dtype=tensor.dtype)])[: tensor.numel()]}
    if tensor.is_meta or (kind == "sparse" and tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16)):
        return state  # torch makes no sparse tensors of all others
    made = {"sparse": Tensor.to_sparse, "meta": lambda t: t.to("meta"), "gradient": _with_gradient}
    return {**state, key: made[kind](tensor)}


def _with_gradient(tensor: Tensor) -> Tensor:
    return tensor.clone().requires_grad_().clone() if tensor.is_floating_point() else tensor


def _half(draw: Draw, state: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    name = draw(st.sampled_from(["encoder.", "decoder.", "taesd_encoder.", "taesd_decoder.", "quant_conv"]))
    return {k: t for k, t in state.items() if name not in k}


CHANGES: dict[str, Callable[[Draw, dict[str, Tensor], str], dict[str, Tensor]]] = {
    "missing": lambda draw, state, key: {k: t for k, t in state.items() if k != key},
    "missing level": lambda draw, state, key: {
        k: t for k, t in state.items() if not k.startswith(key[: len(key) // 2])
    },
    "renamed": _rename,
    "extra": _extra,
    "wrong shape": lambda draw, state, key: {**state, key: torch.zeros(draw(SHAPES))},
    "wrong dtype": lambda draw, state, key: {**state, **_cast({key: state[key]}, draw(st.sampled_from(DTYPES)))},
    "all dtypes": lambda draw, state, key: _cast(state, draw(st.sampled_from(DTYPES))),
    "swapped": _swap,
    "strides": _strides,
    "prefix": lambda draw, state, key: _prefixed(state, draw(st.sampled_from(PREFIXES))),
    "half": _half,
    "none": lambda draw, state, key: state,
}


def _cast(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """All but what is huge, being expanded."""
    return {key: tensor.to(dtype) if tensor.numel() < 2**24 else tensor for key, tensor in state.items()}


def _prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: tensor for key, tensor in state.items()}


# -- safetensors -------------------------------------------------------------------------------------------------------

ODD_VALUES = st.one_of(
    st.none(),
    st.integers(-(2**40), 2**70),
    st.text(max_size=3),
    st.lists(st.integers(-1, 2**40), max_size=3),
    st.sampled_from(["F16", "I32", "BOOL", "F64", "U64", "F8_E4M3", "F4", 1e999, True, {}, [[0]]]),
)


def damage_header(draw: Draw, content: bytes) -> bytes:
    """The header stays JSON (but for what JSON forbids and parsers may take), so that more of it is believed."""
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    names = sorted(header.keys() - {"__metadata__"})
    pairs = list(header.items())
    for _ in range(draw(st.integers(1, 2))):
        name, other = draw(st.sampled_from(names)), draw(st.sampled_from(names))
        entry = header[name] = dict(header[name])
        kind = draw(st.sampled_from(["field", "shift", "overlap", "huge", "twice", "drop", "hole", "empty", "reshape"]))
        if kind == "field":
            entry[draw(st.sampled_from(["dtype", "shape", "data_offsets", "extra"]))] = draw(ODD_VALUES)
        elif kind == "shift" and isinstance(entry.get("data_offsets"), list):
            by = draw(st.sampled_from([-8, -4, -1, 1, 4, 2**20, 2**40, -(2**63)]))
            entry["data_offsets"] = [end + by if type(end) is int else end for end in entry["data_offsets"]]
        elif kind == "overlap":
            entry["data_offsets"] = header[other].get("data_offsets")
        elif kind == "huge":
            entry["shape"] = [draw(st.sampled_from([10**6, 2**31, 2**62, 2**64]))] * draw(st.integers(1, 4))
            entry["data_offsets"] = [0, draw(st.sampled_from([4, 10**12, 2**62, 2**64 - 1]))]
        elif kind == "empty":
            entry |= {"shape": [0, 2**40], "data_offsets": [0, 0]}
        elif kind == "reshape" and isinstance(entry.get("shape"), list):
            entry["shape"] = draw(st.permutations(entry["shape"]))
        elif kind == "hole":
            data += bytes(draw(st.integers(1, 64)))
        elif kind == "drop":
            del header[name]
            names = [one for one in names if one != name] or names[:1]
            header.setdefault(names[0], entry)
        pairs = [*header.items(), *([(name, header.get(other, entry))] if kind == "twice" else [])]
    body = ", ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in pairs)
    text = draw(st.sampled_from(["{%s}", "{%s}   ", "{%s", " {%s}", "[{%s}]", "{%s,}"])) % body
    return struct.pack("<Q", len(text)) + text.encode() + data


def damage_bytes(draw: Draw, content: bytes, within: int) -> bytes:
    """Bits turned, bytes put in, left out or cut off within the first `within` bytes, or a false length before them."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        where = draw(st.integers(0, max(0, min(within, len(changed)) - 1)))
        kind = draw(st.sampled_from(["flip", "insert", "delete", "truncate", "length", "repeat"]))
        if kind == "flip" and changed:
            changed[where] ^= draw(st.integers(1, 255))
        elif kind == "insert":
            changed[where:where] = draw(st.binary(min_size=1, max_size=9))
        elif kind == "delete":
            del changed[where : where + draw(st.integers(1, 9))]
        elif kind == "truncate":
            del changed[draw(st.integers(0, len(changed))) :]
        elif kind == "repeat":
            changed[where:where] = changed[: draw(st.integers(1, 100))]
        elif kind == "length":
            changed[:8] = struct.pack("<Q", draw(st.integers(0, 2**64 - 1)))
    return bytes(changed)


# -- pickles -----------------------------------------------------------------------------------------------------------

NUMBERS = [-(2**31), -1, 0, 1, 2, 255, 2**16, 2**31 - 1, 2**33, 2**40, 2**62, 2**64, 2**70]
GLOBALS = [
    *(b"torch HalfStorage", b"torch BoolStorage", b"torch DoubleStorage", b"torch Tensor", b"torch UntypedStorage"),
    *(b"os system", b"builtins eval", b"collections OrderedDict", b"torch._utils _rebuild_parameter", b"nowhere x"),
]


def damage_pickle(draw: Draw, content: bytes) -> bytes:
    """One operation of the first pickle in `content` changed: a number, a class, a text, or another operation."""
    places = [at for *_, at in pickletools.genops(content)]
    spans = list(zip(pickletools.genops(content), [*places[1:], places[-1] + 1], strict=True))
    wanted = draw(st.sampled_from(["number", "class", "text", "any"]))
    kinds = {"number": "INT", "class": "GLOBAL", "text": "UNICODE", "any": ""}
    found = [(op, at, end) for (op, _, at), end in spans if kinds[wanted] in op.name] or [
        (*spans[-1][0][::2], len(content))
    ]
    _, start, end = draw(st.sampled_from(found))
    if wanted == "number":
        new = b"\x8a\x0a" + draw(st.sampled_from(NUMBERS)).to_bytes(10, "little", signed=True)
    elif wanted == "class":
        new = b"c" + draw(st.sampled_from(GLOBALS)).replace(b" ", b"\n") + b"\n"
    elif wanted == "text":
        text = draw(st.text(max_size=9)).encode("utf-8", "surrogatepass")
        new = b"X" + struct.pack("<I", len(text)) + text
    else:
        new = draw(
            st.sampled_from([b"", b"N", b"0", b".", b"t", b"R", b"(", b"2", b"]", b"\x88", content[start:end] * 2])
        )
    return content[:start] + new + content[end:]


def split_legacy(content: bytes) -> tuple[bytes, bytes, bytes]:
    """(three pickles before, the pickle of the content, what follows) of a file as torch wrote it before 1.6."""
    ends = [0]
    for _ in range(4):
        *_, (_, _, last) = pickletools.genops(content[ends[-1] :])
        ends.append(ends[-1] + last + 1)
    return content[: ends[3]], content[ends[3] : ends[4]], content[ends[4] :]


def damage_archive(draw: Draw, content: bytes) -> bytes:
    """Entries of a zip archive changed, compressed, left out, doubled, shortened or renamed."""
    kind = draw(st.sampled_from(["pickle", "pickle", "none", "drop", "twice", "short", "rename", "order", "junk"]))
    packing = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(written, "w", packing) as new:
        entries = [(entry.filename, old.read(entry)) for entry in old.infolist()]
        place = draw(st.integers(0, len(entries) - 1))
        name, data = entries[place]
        if kind == "drop":
            del entries[place]
        elif kind == "short":
            entries[place] = (name, data[: len(data) // 2])
        elif kind == "rename":
            entries[place] = (name + draw(st.sampled_from(["x", "/", "\n", "é"])), data)
        elif kind == "order":
            entries.reverse()
        elif kind == "junk":
            entries.append(("archive/data/../../x", data))
        elif kind == "twice":
            entries.append((name, data[::-1]))
        for name, data in entries:
            is_pickle = kind == "pickle" and name.endswith("data.pkl")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a name that is there already
                new.writestr(name, damage_pickle(draw, data) if is_pickle else data)
    return written.getvalue()
