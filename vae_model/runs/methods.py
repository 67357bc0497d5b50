"""The three methods by their names, and what runs where the engine has no rule for a model."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from ..errors import InputError
from ..exact.layer import UnsupportedModule
from ..host import PlanProtocol
from .blend import run_blend
from .exact import run_exact
from .run import ModelRun
from .untiled import run_untiled

logger = logging.getLogger(__name__)

METHODS: dict[str, Callable[[ModelRun], PlanProtocol | None]] = {
    "exact": run_exact,
    "untiled": run_untiled,
    "blend": run_blend,
}
"""Each fills the run's result; "exact" gives the plan that it followed."""


def check_method(method: Any) -> None:
    """InputError for a name that is not in METHODS."""
    if method not in tuple(METHODS):  # which asks no one for a hash
        raise InputError(f"method: expected one of {', '.join(METHODS)}, got {method!r}: choose one of these")


def perform(run: ModelRun, method: str) -> PlanProtocol | None:
    """Run by that method; "exact" becomes "untiled", with a warning, where the engine has no rule for a module."""
    try:
        return METHODS[method](run)
    except UnsupportedModule as reason:
        report = run.watch.report
        report.method, report.reason = "untiled", str(reason)
        logger.warning("%s: running untiled, which takes more memory: %s", run.what, reason)
    return run_untiled(run)  # outside of the block: its errors have not come of the first one
