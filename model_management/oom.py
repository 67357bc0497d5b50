"""The one test for "memory ran out", whichever back end says it.

PyTorch has a class for it since CUDA; other back ends, libraries called from inside an operation, and the CPU
allocator raise a plain RuntimeError and can only be told by their text. Sources of the texts: PyTorch's allocators
(c10/core/impl/alloc_cpu.cpp, c10/cuda, c10/xpu, aten/src/ATen/mps), the status names of cuBLAS, cuDNN, hipBLAS and
MIOpen, microsoft/DirectML issue 579, and intel/torch-xpu-ops issue 1324 for Unified Runtime.
"""

from __future__ import annotations

import errno
import re

import torch

OOM_EXCEPTION: type[Exception] = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)
"""PyTorch's own class, for an except clause that wants nothing else. `is_oom` knows more."""

_TEXTS = re.compile(
    r"\b(?:CUDA|HIP|XPU|MPS backend|NPU|MLU)\b[^\n]{0,40}\bout of memory"
    r"|cudaErrorMemoryAllocation|hipErrorOutOfMemory"
    r"|(?:CUBLAS|CUDNN|HIPBLAS|CUSOLVER|ROCBLAS)_STATUS_\w*ALLOC(?:ATION)?_FAILED|miopenStatusAllocFailed"
    r"|(?:UR_RESULT|PI)_ERROR_OUT_OF_(?:DEVICE_MEMORY|HOST_MEMORY|RESOURCES)"
    r"|Could not allocate tensor with \d+ bytes"
    r"|DefaultCPUAllocator: (?:not enough memory|can't allocate memory)"
    r"|unable to mmap \d+ bytes[^\n]*Cannot allocate memory"
)
_ACCELERATOR_TEXT = re.compile(r"\bout of memory\b", re.IGNORECASE)


def is_oom(error: BaseException) -> bool:
    """Whether `error` says that memory ran out, on a device or in main memory.

    Only the error itself is judged, not its cause. Call it inside the except block and act after leaving it: while the
    error is being handled its traceback keeps the failed operation's tensors alive.
    """
    if isinstance(error, (OOM_EXCEPTION, MemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if not isinstance(error, RuntimeError):
        return False
    # torch.AcceleratorError (PyTorch 2.8) carries the device runtime's own text, which need not name the device.
    accelerator_error = getattr(torch, "AcceleratorError", None)
    if accelerator_error is not None and isinstance(error, accelerator_error) and _ACCELERATOR_TEXT.search(str(error)):
        return True
    return _TEXTS.search(str(error)) is not None
