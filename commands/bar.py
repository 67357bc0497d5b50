"""The command line's progress bar: on terminals only, and never filled by what failed."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def open_bar(total: float, what: str, *, quiet: bool, count: bool = False) -> tqdm[Any]:
    """A bar on stderr, to be used in `with`; none where stderr is a file or a pipe.

    Args:    count: whether the total is a number of files, to be shown.
    """
    numbers = "{n:.4g}/{total} " if count else ""
    layout = "{desc}: {percentage:3.0f}%|{bar}| " + numbers + "[{elapsed} elapsed, {remaining} left]"
    return tqdm(total=total, desc=what, disable=quiet or not sys.stderr.isatty(), bar_format=layout)
