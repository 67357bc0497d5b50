"""Objects by their dotted path, for a loss of one's own. This imports, and so runs, the module that is named."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors.listed import first_line
from .config import ConfigError


@contextmanager
def importable(*folders: Path) -> Generator[None, None, None]:
    """Within it modules of these folders are found, too, after all others."""
    added = [str(folder.resolve()) for folder in folders]
    sys.path.extend(added)
    try:
        yield
    finally:
        for path in added:
            sys.path.remove(path)


def get_object(path: str, where: str) -> Any:
    """What `path` = "package.module.name" names; ConfigError, in one line, where there is none."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # an import runs code that is not ours
        raise ConfigError(
            f"{where}: expected the path of a class or function, got {path!r}: "
            f"write module.name, with module.py beside the configuration or in the current folder ({first_line(error)})"
        ) from error


def is_importable(package: str) -> bool:
    """Whether there is a package or module of this name; nothing is run."""
    return package in sys.modules or importlib.util.find_spec(package) is not None
