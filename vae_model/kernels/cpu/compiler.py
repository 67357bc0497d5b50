"""C compiled at first use by the machine's own compiler, and kept for later processes; only Linux is tried.

Where there is no compiler, or what it made gives wrong results, `load` says so once and gives None: callers then go on
with PyTorch's own operations. `EXACT_VAE_NATIVE=0` in the environment has the same effect.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")
Use = Callable[[ctypes.CDLL], _Result]

_COMPILERS = ("gcc", "cc")
_OPTIONS = ("-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC")
_SECONDS = 60


def load(source: Path, declare: Use[None], is_right: Use[bool]) -> ctypes.CDLL | None:
    """The functions of a C source, compiled for this CPU; None where that cannot be done.

    They are tried in a thread of their own, where no mode of the caller counts or fakes the tensors of the trial.

    Args:    declare: sets the functions' argument and result types. is_right: tries them out.
    """

    def attempt() -> ctypes.CDLL:
        library = _library(source)
        declare(library)
        if not is_right(library):
            raise OSError(f"{source.name} gives wrong results")
        return library

    try:
        if os.environ.get("EXACT_VAE_NATIVE", "1") == "0":
            raise OSError("EXACT_VAE_NATIVE is 0")
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(attempt).result()
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        logger.info("CPU kernels: not compiled, PyTorch's own are used: %s", error)
        return None


def _library(source: Path) -> ctypes.CDLL:
    """The compiled source: as it was built on this machine before, else built now and kept."""
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if sys.platform != "linux" or compiler is None:
        raise OSError("no C compiler" if sys.platform == "linux" else f"{sys.platform} is not Linux")
    threads = _threads_library()
    kept = kept_library(source, _key(source, compiler, threads))
    if kept is not None and kept.exists():
        try:
            return ctypes.CDLL(str(kept))
        except OSError:
            kept.unlink(missing_ok=True)  # of a disk that was full, say: built anew
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "kernels.so"
        # With PyTorch's own threads: a second set of them would wait for the first to be idle.
        libraries = ("-Wl,--as-needed", "-Wl,-z,defs", threads)
        command = [compiler, *_OPTIONS, f"-I{Path(__file__).parent}", "-o", str(target), str(source), *libraries]
        made = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        if made.returncode:
            raise OSError(" ".join(made.stderr.split())[:300])
        if kept is not None:
            with contextlib.suppress(OSError):
                _keep(target, kept)
        return ctypes.CDLL(str(target))  # stays loaded as long as the process lives, with or without its file


def _keep(target: Path, kept: Path) -> None:
    """Copy what was built beside its place and move it there in one step: others may be building it, too."""
    with tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as part:
        part.write(target.read_bytes())
    os.replace(part.name, kept)


def _key(source: Path, compiler: str, threads: str) -> str:
    """Of everything that the result depends on: sources, compiler, options, CPU, PyTorch's threads."""
    digest = hashlib.sha256()
    for path in (source, *sorted(Path(__file__).parent.glob("*.h"))):
        digest.update(path.read_bytes())
    found = Path(compiler).resolve()
    state = found.stat()
    words = [str(found), state.st_size, state.st_mtime_ns, *_OPTIONS, threads, platform.machine(), _cpu()]
    digest.update("\n".join(map(str, words)).encode())
    return digest.hexdigest()[:32]


def _cpu() -> str:
    """The CPU by name and abilities: code for one may not run on another that shares the folder."""
    lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    wanted = ("model name", "flags", "Features", "CPU part", "CPU implementer")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def kept_library(source: Path, key: str) -> Path | None:
    """Where the library of that key is kept; None where no folder is ours alone, for what lies there is run."""
    root = os.environ.get("XDG_CACHE_HOME") or ""
    base = Path(root) if os.path.isabs(root) else Path.home() / ".cache"
    folder = base / "exact-vae"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = folder.stat()
    except (OSError, RuntimeError):  # a home that cannot be told, or is no place to write to
        return None
    ours = state.st_uid == os.getuid() and not state.st_mode & 0o022
    return folder / f"{source.stem}-{key}.so" if ours else None


def _threads_library() -> str:
    """The file of the OpenMP library that PyTorch has loaded."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.partition("/")[1] + line.partition("/")[2]
        if Path(path).name.startswith("libgomp"):
            return path
    raise OSError("PyTorch does not use GNU OpenMP here")
