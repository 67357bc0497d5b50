"""The errors that users meet. Each is one line: what was expected, what was found, what to do."""

from __future__ import annotations


class VAEFileError(ValueError):
    """A file that cannot be read, is no autoencoder, or does not fit the autoencoder it looks like."""


class InputError(ValueError):
    """Latents, images or options that the loaded autoencoder cannot take."""


class MemoryBudgetError(RuntimeError):
    """The run does not fit in the memory that there is or that was allowed."""

    def __init__(self, message: str, needed_bytes: int | None = None) -> None:
        """`needed_bytes`: the smallest budget that would do, where it is known."""
        super().__init__(message)
        self.needed_bytes = needed_bytes


class UnexpectedError(RuntimeError):
    """An error of PyTorch, Python or the system, in words; the original is its cause."""


# A host names an error by its module, which for a node is the path of a file; the package that offers it reads better.
for _kind in (VAEFileError, InputError, MemoryBudgetError, UnexpectedError):
    _kind.__module__ = "exact_vae"
