"""`exact-vae train`: reads a configuration, checks it, trains, tells the figures of the last check."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .config import BEST, SCORE, ConfigError
from .preflight import check_inputs
from .recipe import read_config

_NEEDED = {"lightning": "lightning", "yaml": "PyYAML"}
_FIGURES = {"psnr": ("{:.2f} dB", "PSNR"), "ssim": ("{:.4f}", "SSIM")}


def train(name: str, overrides: Sequence[str] = (), *, resume: bool = False, quiet: bool = False) -> list[str]:
    """Train as a configuration says; ConfigError, in one line, for all that is wrong.

    Returns: what to print: the lines on what was done, and one more text where it was stopped before its end. Of
             several processes the first one says it.
    """
    missing = [package for module, package in _NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ConfigError(
            f"train: expected the packages {', '.join(_NEEDED.values())}, {', '.join(missing)} missing: "
            "pip install 'exact-vae[train]'"
        )
    first = all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK"))
    if not first:  # of several processes, which all would say the same
        logging.disable(logging.WARNING)
    config = read_config(name, overrides)
    inputs = check_inputs(config, resume=resume)
    from .fit import prepare, run  # Lightning takes seconds

    with importable(Path(name).parent, Path()):  # where a loss of one's own may be
        prepared = prepare(config, resume=resume, progress=not quiet and sys.stderr.isatty(), inputs=inputs)
        nothing_left = prepared.ended
        run(prepared)
    if not first:
        return [""]
    module, folder = prepared.module, config.output.folder
    count = f"{module.batches_done} of {module.total_batches} batches"
    if module.batches_done > module.total_batches:
        count = f"{module.batches_done} batches, more than the {module.total_batches} that are asked for"
    done = [f"{count}; weights in {folder}/{config.output.weights}"]
    judged = _judged_line(Path(folder), module)
    if judged is not None:
        done.append(judged)
    if nothing_left:
        done.append("nothing was left to train: raise trainer.batches or trainer.epochs to go on")
    stopped = "stopped before the end; the same command with --resume goes on"
    return ["\n".join(done), *([stopped] if module.batches_done < module.total_batches else [])]


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


def _judged_line(folder: Path, module: Any) -> str | None:
    """The line about the last check, of training.json and best.json; None where nothing was judged."""
    names = [name for name in ("val/psnr", "val/ssim") if name in module.logged_keys()] or ["val/total_loss"]
    keys = list(dict.fromkeys(name.removeprefix("val/") for name in (*names, module.monitor or names[0])))
    rows = [row for row in _read(folder / "training.json").get("curve", []) if any(key in row for key in keys)]
    if not rows:
        return None
    found = ", ".join(_told(key, rows[-1][key]) for key in keys if key in rows[-1])
    best = _read(folder / SCORE)
    if best and (folder / BEST).is_file():
        found += f"; {BEST} has {_told(str(best['monitor']).removeprefix('val/'), best['value'])}"
    return f"judged after batch {rows[-1]['batch']}: {found}; every check stands in {folder / 'training.json'}"


def _told(key: str, value: float) -> str:
    form, name = _FIGURES.get(key, ("{:.4g}", key))
    return f"{name} {form.format(value)}"


def _read(path: Path) -> Mapping[str, Any]:
    """A file of this training; nothing where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
