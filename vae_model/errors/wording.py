"""The one place where errors of others (PyTorch, Python, the operating system) become one line that helps.

What says already what was expected stays as it is, and so does everything that is no such error: a host's interruption,
its memory errors. The original is the cause of what is raised instead, and is logged with its traceback as DEBUG.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from functools import wraps
from inspect import unwrap
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

from . import InputError, MemoryBudgetError, UnexpectedError

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger(__name__)

_OURS = re.compile(r"[^\n]*: expected [^\n]*")
_MOST = 300
"""Characters of a foreign message that are shown."""
_FOREIGN = ("builtins", "torch", "numpy", "safetensors", "PIL", "safetensors_rust", "zipfile", "json", "struct")
_NO_MEMORY = (MemoryError, torch.cuda.OutOfMemoryError)  # the second is that of all devices

_KNOWN = {
    r"to have (\d+) channels, but got (\d+) channels": (
        "expected {0} channels, got {1}: use the VAE that belongs to the model, or an image of its kind"
    ),
    r"Expected all tensors to be on the same device[^\n]*?(\w+:?\d*) and (\w+:?\d*)": (
        "expected weights and input on one device, got {0} and {1}: load the VAE again"
    ),
    r"Input type \((\S+)\) and (?:weight|bias) type \((\S+)\)": (
        "expected weights and input of one kind, got {1} and {0}: load the VAE again"
    ),
    r"not implemented for '(\w+)'": (
        "expected a number format that this device computes in, got {0}: load the VAE with dtype float32"
    ),
    r"on meta tensors|meta tensor": "expected numbers, got a tensor on the meta device: load or compute it first",
    r"not enough memory|out of memory|can't allocate": "expected enough memory, ran out: free some, or ask for less",
}
"""A piece of a foreign message -> what to say instead with its groups."""


def is_foreign(error: BaseException) -> bool:
    """Whether `error` is one of Python's, PyTorch's or a file library's that does not say what was expected."""
    package = type(error).__module__.partition(".")[0]
    return isinstance(error, Exception) and package in _FOREIGN and not _OURS.fullmatch(str(error))


def in_words(error: Exception, what: str) -> Exception:
    """`error` as users should meet it: one line, "<what>: expected ..., got ...: what to do". Ours as it is.

    `what`: what was being done, such as "decode".
    """
    if not is_foreign(error):
        return error
    logger.debug("%s failed", what, exc_info=error)
    text = " ".join(str(error).split())
    short = text if len(text) <= _MOST else f"{text[:_MOST]}..."
    if isinstance(error, _NO_MEMORY):
        return MemoryBudgetError(f"{what}: expected enough memory, ran out: free some, or ask for less ({short})")
    if isinstance(error, ImportError):
        return UnexpectedError(f"{what}: expected the package {error.name or text}, found none: install it")
    if isinstance(error, OSError) and error.strerror:
        place = f"{what}: {error.filename}" if error.filename is not None else what
        return UnexpectedError(f"{place}: expected to read or write, got {error.strerror!r}: check path and free space")
    for piece, sentence in _KNOWN.items():
        found = re.search(piece, text)
        if found:
            return InputError(f"{what}: {sentence.format(*found.groups())}")
    return UnexpectedError(
        f"{what}: expected no error, got {type(error).__name__}: {short}: check the inputs; the traceback (--debug, or "
        "the log) tells where, for a report"
    )


def one_line(error: Exception, what: str) -> str:
    """`in_words`, as text without line breaks."""
    return " ".join(str(in_words(error, what)).split()) or type(error).__name__


def speaks_plainly(what: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A function whose foreign errors are worded, for an edge of the library."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def edge(*args: P.args, **options: P.kwargs) -> R:
            try:
                return function(*args, **options)
            except Exception as error:
                # No name holds what is raised: its traceback holds this frame, and so would all tensors of the run.
                if not is_foreign(error) or _was_not_called(function, error):
                    raise
                raise in_words(error, what) from error

        return edge

    return decorate


def _was_not_called(function: Callable[..., Any], error: Exception) -> bool:
    """Whether the arguments did not fit: Python's own words are the ones that a programmer knows."""
    code, trace = getattr(unwrap(function), "__code__", None), error.__traceback__
    if not isinstance(error, TypeError):
        return False
    while trace is not None and trace.tb_frame.f_code is not code:
        trace = trace.tb_next
    return trace is None


def needs_half(part: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A method of a VAE, named for what it does, that cannot do without its encoder or decoder; worded as above."""

    def decorate(method: Callable[P, R]) -> Callable[P, R]:
        @wraps(method)
        def edge(*args: P.args, **options: P.kwargs) -> R:
            vae: Any = args[0]
            require_half(vae.first_stage_model, part, method.__name__)
            return method(*args, **options)

        return speaks_plainly(method.__name__)(edge)

    return decorate


def require_half(model: nn.Module | None, part: str, what: str) -> None:
    """InputError for a model without its `part`, "encoder" or "decoder"."""
    parts = [name for name in ("encoder", "decoder") if hasattr(model, name)]
    if parts and part not in parts:
        raise InputError(
            f"{what}: expected a VAE with its {part}, got the {parts[0]} alone: load both files, or a whole VAE"
        )
