"""`exact-vae train`: reads a configuration, checks it, trains."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .config import ConfigError
from .dotted import importable
from .judged import judged_line
from .preflight import check_inputs
from .recipe import read_config

_NEEDED = {"lightning": "lightning", "yaml": "PyYAML"}


def train(name: str, overrides: Sequence[str] = (), *, resume: bool = False, quiet: bool = False) -> list[str]:
    """Train as a configuration says; ConfigError, in one line, for all that is wrong.

    Returns: what to print: the lines on what was done, and one more text where it was stopped before its end.
    """
    missing = [package for module, package in _NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ConfigError(
            f"train: expected the packages {', '.join(_NEEDED.values())}, {', '.join(missing)} missing: "
            "pip install 'exact-vae[train]'"
        )
    config = read_config(name, overrides)
    inputs = check_inputs(config, resume=resume)
    from .fit import prepare, run  # Lightning takes seconds

    with importable(Path(name).parent, Path()):  # where a loss of one's own may be
        prepared = prepare(config, resume=resume, progress=not quiet and sys.stderr.isatty(), inputs=inputs)
        nothing_left = prepared.ended
        run(prepared)
    module, folder = prepared.module, config.output.folder
    done = [f"{module.batches_done} of {module.total_batches} batches; weights in {folder}/{config.output.weights}"]
    judged = judged_line(Path(folder), _judged_by(module))
    if judged is not None:
        done.append(judged)
    if nothing_left:
        done.append("nothing was left to train: raise trainer.batches or trainer.epochs to go on")
    stopped = "stopped before the end; the same command with --resume goes on"
    return ["\n".join(done), *([stopped] if module.batches_done < module.total_batches else [])]


def _judged_by(module: Any) -> list[str]:
    """The logged values that tell most, the one that is monitored among them."""
    usual = [name for name in ("val/psnr", "val/ssim") if name in module.logged_keys()] or ["val/total_loss"]
    return usual if module.monitor is None else [*usual, module.monitor]
