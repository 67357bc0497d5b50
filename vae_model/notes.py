"""What is told about a file that was read: which of several weights were taken, what was left out; also about inputs.

Told once for every loading, to the logger "exact_vae.vae_model.notes" as information: a host shows it in its log, the
command line on stderr, and a library's user where he asks for it. `LoadedModel.notes` keeps the same texts.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

logger = logging.getLogger(__name__)


class Warned(str):
    """A note on a choice that may not be what was meant: Python shows it."""


def tell(name: str, notes: Sequence[str]) -> None:
    """Log the notes on one file."""
    for note in notes:
        logger.log(logging.WARNING if isinstance(note, Warned) else logging.INFO, "%s: %s", name, note)


def warn(name: str, note: str) -> None:
    """Log a note on what was handed over that is probably not what was meant, as a warning: Python shows these."""
    logger.warning("%s: %s", name, note)


class _Stderr(logging.Handler):
    """Writes a line to what is stderr when it writes."""

    def emit(self, record: logging.LogRecord) -> None:
        """One note."""
        print(f"exact-vae: {record.getMessage()}", file=sys.stderr, flush=True)


_handler = _Stderr()


def show_on_stderr(shown: bool) -> None:
    """For the command line: notes as lines on stderr, or none at all."""
    logger.setLevel(logging.INFO if shown else logging.WARNING)
    if _handler not in logger.handlers:
        logger.addHandler(_handler)
