"""A coder: the encoder or the decoder of a model as the engine runs it, with what is done to rows around it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..exact.layer import UnsupportedModule
from ..exact.program import Program
from ..exact.read import describe


def _same(rows: Tensor) -> Tensor:
    return rows


@dataclass(frozen=True)
class Coder:
    """A decoder, raw latents to raw images, or an encoder, images in -1..1 to raw latents, as the engine runs it.

    `prepare` and `finish` take rows (B, C, n, W).
    """

    program: Program
    prepare: Callable[[Tensor], Tensor] = _same
    finish: Callable[[Tensor], Tensor] = _same

    def behind(self, first: Callable[[Tensor], Tensor]) -> Coder:
        """The same with `first` done to its rows before all else."""
        return Coder(self.program, lambda rows: self.prepare(first(rows)), self.finish)


@contextmanager
def all_parts_of(coder: Any) -> Generator[None, None, None]:
    """Within it, what a module tree lacks or has otherwise is an UnsupportedModule that names the coder."""
    try:
        yield
    except UnsupportedModule:
        raise
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise UnsupportedModule(f"{describe(coder)}: expected all parts of a coder, got {error}") from error


def require_moments(model: Any, program: Program, latent_channels: int) -> None:
    """UnsupportedModule for an encoder whose result is no mean, with or without variances."""
    if program.out_channels not in (latent_channels, 2 * latent_channels):
        raise UnsupportedModule(
            f"{describe(model.encoder)}: expected {latent_channels} channels, with or without variances, "
            f"got {program.out_channels}"
        )
