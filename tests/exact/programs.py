"""Programs of bare coders, for tests of several families at once."""

from __future__ import annotations

from typing import Any

from exact_vae.vae_model.exact.program import Program
from exact_vae.vae_model.families.ldm.program import build_program as ldm_program
from exact_vae.vae_model.families.tiny.program import tiny_program
from torch import nn


def build_program(coder: Any, *, before: Any = None, after: Any = None) -> Program:
    """Of an ldm coder, or of a tiny one, which has nothing around it."""
    if hasattr(coder, "layers") or type(coder) is nn.Sequential:
        assert before is None
        assert after is None
        return tiny_program(coder)
    return ldm_program(coder, before=before, after=after)
