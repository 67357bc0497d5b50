"""C compiled at first use by the machine's own compiler; only Linux is tried.

Where there is no compiler, or what it made gives wrong results, `load` says so once and gives None: callers then go on
with PyTorch's own operations. `EXACT_VAE_NATIVE=0` in the environment has the same effect.
"""

from __future__ import annotations

import ctypes
import logging
import os
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
    """The functions of a C source, compiled for this processor; None where that cannot be done.

    They are tried in a thread of their own, where no mode of the caller counts or fakes the tensors of the trial.

    Args:    declare: sets the functions' argument and result types. is_right: tries them out.
    """

    def attempt() -> ctypes.CDLL:
        library = _compile(source)
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
        logger.info("processor kernels: not compiled, PyTorch's own are used: %s", error)
        return None


def _compile(source: Path) -> ctypes.CDLL:
    """The library stays loaded as long as the process lives; its file does not stay."""
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if sys.platform != "linux" or compiler is None:
        raise OSError("no C compiler" if sys.platform == "linux" else f"{sys.platform} is not Linux")
    with tempfile.TemporaryDirectory() as folder:
        target = str(Path(folder) / "kernels.so")
        # With PyTorch's own threads: a second set of them would wait for the first to be idle.
        libraries = ("-Wl,--as-needed", "-Wl,-z,defs", _threads_library())
        command = [compiler, *_OPTIONS, f"-I{Path(__file__).parent}", "-o", target, str(source), *libraries]
        made = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        if made.returncode:
            raise OSError(" ".join(made.stderr.split())[:300])
        return ctypes.CDLL(target)


def _threads_library() -> str:
    """The file of the OpenMP library that PyTorch has loaded."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.partition("/")[1] + line.partition("/")[2]
        if Path(path).name.startswith("libgomp"):
            return path
    raise OSError("PyTorch does not use GNU OpenMP here")
