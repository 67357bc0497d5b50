"""CUDA C compiled at run time by NVRTC, the compiler library that PyTorch brings along; no toolchain is needed.

Where the library or the driver is absent, or a kernel does not compile, `load` says so once and gives None: callers
then go on with PyTorch's own operations.
"""

from __future__ import annotations

import ctypes
import logging
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)


class Kernel:
    """One function of a compiled source, on one device."""

    def __init__(self, function: ctypes.c_void_p, device: int) -> None:
        self._function, self._device = function, device
        self._start = _driver().cuLaunchKernel

    def __call__(
        self, grid: tuple[int, int, int], threads: int, arguments: Sequence[Any], shared_bytes: int = 0
    ) -> None:
        """Start it on the device's current stream. `arguments`: ctypes numbers and pointers, as the source has them."""
        if torch.cuda.current_device() != self._device:
            with torch.cuda.device(self._device):
                return self(grid, threads, arguments, shared_bytes)
        pointers = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        status = self._start(self._function, *grid, threads, 1, 1, shared_bytes, stream, pointers, None)
        if status:
            raise RuntimeError(f"CUDA: a kernel could not be started: status {status} of the driver")
        return None


@cache
def load(source: str, names: tuple[str, ...], defines: tuple[str, ...], device: int) -> dict[str, Kernel] | None:
    """The kernels of a source by their names, compiled once for a device; None where that cannot be done.

    Args:    defines: macros, such as "VALUE=1".
    """
    try:
        with torch.cuda.device(device):
            torch.cuda.current_stream().synchronize()  # the device's context is there from here on
            return _load(_compile(source, defines, device), names, device)
    except (OSError, RuntimeError, AttributeError) as error:
        logger.warning("CUDA kernels: not compiled, PyTorch's own are used: %s", error)
        return None


def _compile(source: str, defines: Sequence[str], device: int) -> bytes:
    """Machine code of the device, or PTX for the driver where the library does not know the device yet."""
    major, minor = torch.cuda.get_device_capability(device)
    library, log = _nvrtc(), ""
    for target, size, get in (
        (f"sm_{major}{minor}", library.nvrtcGetCUBINSize, library.nvrtcGetCUBIN),
        ("compute_75", library.nvrtcGetPTXSize, library.nvrtcGetPTX),
    ):
        options = [f"--gpu-architecture={target}", *(f"-D{define}" for define in defines)]
        program = ctypes.c_void_p()
        _check(library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"strips.cu", 0, None, None))
        try:
            encoded = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            if library.nvrtcCompileProgram(program, len(options), encoded) == 0:
                return _buffer(program, size, get)
            log = _buffer(program, library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog).decode(errors="replace")
        finally:
            library.nvrtcDestroyProgram(ctypes.byref(program))
    raise RuntimeError(" ".join(log.rstrip("\0").split())[:300])


def _buffer(program: ctypes.c_void_p, size: Any, get: Any) -> bytes:
    count = ctypes.c_size_t()
    _check(size(program, ctypes.byref(count)))
    buffer = ctypes.create_string_buffer(count.value)
    _check(get(program, buffer))
    return buffer.raw


def _check(status: int) -> None:
    if status:
        raise RuntimeError(f"status {status} of NVRTC")


def _load(code: bytes, names: Sequence[str], device: int) -> dict[str, Kernel]:
    """The functions of a module; the module stays loaded as long as the process lives."""
    module, kernels = ctypes.c_void_p(), dict[str, Kernel]()
    status = _driver().cuModuleLoadData(ctypes.byref(module), code)
    for name in names if not status else ():
        function = ctypes.c_void_p()
        status = status or _driver().cuModuleGetFunction(ctypes.byref(function), module, name.encode())
        kernels[name] = Kernel(function, device)
    if status:
        raise RuntimeError(f"status {status} of the driver")
    return kernels


@cache
def _driver() -> Any:
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


@cache
def _nvrtc() -> Any:
    """The library as the loader finds it, else from where PyTorch's packages keep it."""
    errors: list[str] = []
    for candidate in _libraries(str(torch.version.cuda).partition(".")[0]):
        try:
            return ctypes.CDLL(candidate)
        except OSError as error:
            errors.append(str(error))
    raise OSError(f"NVRTC not found: {errors[0] if errors else 'no place to look for it'}")


def _libraries(major: str) -> Iterator[str]:
    windows = sys.platform == "win32"
    name = f"nvrtc64_{major}0_0.dll" if windows else f"libnvrtc.so.{major}"
    yield name
    package = Path(torch.__file__).parent
    folders = [package / "lib", *(package.parent / "nvidia").glob("*/bin" if windows else "*/lib")]
    for folder in folders:
        if (folder / name).is_file():
            yield str(folder / name)
