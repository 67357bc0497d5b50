#!/usr/bin/env bash
# torch.save(..., _use_new_zipfile_serialization=False) writes tensors of float8 and uint16 .. uint64 without a word, and
# torch.load cannot read them back: AttributeError about UntypedStorage, on the file it has just written.
#
# The format of before 1.6 names a class of storage for every dtype (FloatStorage, BFloat16Storage, ...). The newer
# dtypes have none, so the name of the untyped one is written, which the reader then asks for a dtype.
# In the zip format the same tensors come back.
# Versions: torch 2.13.0 (CPU), Python 3.10 or newer. Seen:
#   float8_e4m3fn  old format: AttributeError   zip: comes back
#   float8_e5m2    old format: AttributeError   zip: comes back
#   uint16         old format: AttributeError   zip: comes back
#   uint32         old format: AttributeError   zip: comes back
#   bfloat16       old format: comes back       zip: comes back
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PY'
import io

import torch


def read_back(kind: str, zipped: bool) -> str:
    tensor, file = torch.arange(4).to(getattr(torch, kind)), io.BytesIO()
    torch.save({"weight": tensor}, file, _use_new_zipfile_serialization=zipped)
    file.seek(0)
    try:
        found = torch.load(file, weights_only=True)["weight"]
    except AttributeError as error:
        assert "UntypedStorage" in str(error), error
        return "AttributeError"
    return "comes back" if found.dtype == tensor.dtype and bool((found.double() == tensor.double()).all()) else "changed"


expected = {
    "float8_e4m3fn": ("AttributeError", "comes back"),
    "float8_e5m2": ("AttributeError", "comes back"),
    "uint16": ("AttributeError", "comes back"),
    "uint32": ("AttributeError", "comes back"),
    "bfloat16": ("comes back", "comes back"),
}
print("torch", torch.__version__)
for kind, wanted in expected.items():
    seen = tuple(read_back(kind, zipped) for zipped in (False, True))
    print(f"{kind:<14} old format: {seen[0]:<16} zip: {seen[1]}")
    assert seen == wanted, f"{kind}: this has changed"
PY
