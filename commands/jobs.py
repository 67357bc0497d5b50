"""Many files, one after the other: a failure is recorded, the rest go on; output names are settled before any work."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..vae_model.errors import InputError
from ..vae_model.errors.wording import one_line
from ..vae_model.files.atomic import require_writable

Work = Callable[[Path, Path, "Progress"], "Result"]
"""(input, output, progress) -> what came of it."""


class Progress:
    """Gets the fraction done of one input, 0..1; shows it, and of a clip the frames per second."""

    def __init__(self, bar: tqdm[Any], index: int) -> None:
        self._bar, self._index, self._started = bar, index, time.perf_counter()
        self.frames = 0
        """Frames of the clip that is at work, 0 of pictures."""

    def __call__(self, fraction: float) -> None:
        self._bar.n = round(self._index + fraction, 3)
        seconds = time.perf_counter() - self._started
        if self.frames and seconds > 0:
            self._bar.set_postfix_str(f"{fraction * self.frames / seconds:.3g} frames/s", refresh=False)
        self._bar.refresh()

    def part(self, number: int, count: int) -> Callable[[float], None]:
        """Gets the fraction done of one of so many equal parts."""
        return lambda fraction: self((number + fraction) / count)


@dataclass(frozen=True)
class Result:
    """What one input became."""

    outputs: list[Path]
    shape: tuple[int, ...]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """One input's fate: a result, or the one line that says why not."""

    source: Path
    seconds: float
    result: Result | None
    error: str | None
    frames: int = 0
    """Of a clip."""

    @property
    def rate(self) -> str:
        """Of a clip how many frames it has, and frames per second, to be printed behind the seconds."""
        return f", {self.frames} frames, {self.frames / max(self.seconds, 1e-9):.3g} frames/s" if self.frames else ""


def name_outputs(sources: Sequence[Path], output: Path | None, suffix: str) -> list[Path]:
    """Where each input goes: `output` itself for one, else `<folder>/<input's stem><suffix>`, numbered when equal.

    Without `output` the folder is that of each input.

    InputError, before any work, where several inputs are to share one file or the folder cannot be written.
    """
    if output is None:
        for folder in {source.parent for source in sources}:
            require_writable(folder / f"name{suffix}")
        return _numbered([source.with_suffix(suffix) for source in sources])
    is_folder = output.is_dir() or not output.suffix
    if len(sources) > 1 and not is_folder:
        raise InputError(f"-o: expected a folder for {len(sources)} inputs, got {output}: name a folder")
    if not is_folder:
        require_writable(output)
        return [output]
    require_writable(output / f"name{suffix}")
    return _numbered([output / f"{source.stem}{suffix}" for source in sources])


def _numbered(targets: Sequence[Path]) -> list[Path]:
    """The same paths, a number added where one was taken before."""
    taken: set[str] = set()
    names: list[Path] = []
    for target in targets:
        candidates = chain([target.stem], (f"{target.stem}_{number}" for number in count(2)))
        paths = (target.with_name(f"{stem}{target.suffix}") for stem in candidates)
        names.append(next(path for path in paths if str(path).casefold() not in taken))
        taken.add(str(names[-1]).casefold())  # some file systems do not tell cases apart
    return names


def open_bar(total: float, what: str, *, quiet: bool, count: bool = False) -> tqdm[Any]:
    """A progress bar on stderr, to be used in `with`; none where that is no terminal. What failed never fills it.

    Args:    count: whether the total is a number of files, to be shown.
    """
    numbers = "{n:.4g}/{total} " if count else ""
    layout = "{desc}: {percentage:3.0f}%|{bar}| " + numbers + "[{elapsed} elapsed, {remaining} left{postfix}]"
    return tqdm(total=total, desc=what, disable=quiet or not sys.stderr.isatty(), bar_format=layout)


def run_jobs(sources: Sequence[Path], outputs: Sequence[Path], work: Work, *, what: str, quiet: bool) -> list[Outcome]:
    """Do the work for every input, in order, with a progress bar; errors of one input do not stop the others."""
    outcomes: list[Outcome] = []
    with open_bar(len(sources), what, quiet=quiet, count=True) as bar:
        for index, (source, target) in enumerate(zip(sources, outputs, strict=True)):
            progress, started = Progress(bar, index), time.perf_counter()
            result, error = None, None
            try:
                result = work(source, target, progress)
            except Exception as failure:
                error = one_line(failure, what)
                error = error if str(source) in error else f"{source}: {error}"
            outcomes.append(Outcome(source, time.perf_counter() - started, result, error, progress.frames))
            if error is None:
                progress(1.0)
    return outcomes
