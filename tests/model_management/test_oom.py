"""The test for "memory ran out": every back end's words, and words that only look like it."""

import errno

import numpy
import pytest
import torch
from exact_vae.model_management import OOM_EXCEPTION, is_oom

OUT_OF_MEMORY = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("HIP out of memory. Tried to allocate 512.00 MiB"),
    RuntimeError("HIP error: out of memory"),
    RuntimeError("hipErrorOutOfMemory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("XPU out of memory. Tried to allocate 512.00 MiB. GPU 0 has a total capacity of 16.50 GiB."),
    RuntimeError("level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
    RuntimeError("UR backend failed. UR backend returns:40 (UR_RESULT_ERROR_OUT_OF_RESOURCES)"),
    RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 1 GB, max allowed: 9.07 GB)."),
    RuntimeError("Could not allocate tensor with 234881024 bytes. There is not enough GPU video memory available!"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1099511627776 bytes."),
    RuntimeError("unable to mmap 1000 bytes from file </x>: Cannot allocate memory (12)"),
]

SOMETHING_ELSE = [
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"),
    RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
    RuntimeError("Expected all tensors to be on the same device, but found cuda:0 and cpu"),
    RuntimeError("a view size is not compatible with the tensor's memory format"),
    RuntimeError("the worker was killed when its node ran out of memory"),
    NotImplementedError("No operator found for `memory_efficient_attention_forward`"),
    ValueError("CUDA out of memory"),
    OSError(errno.ENOSPC, "No space left on device"),
    KeyboardInterrupt(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: f"{type(error).__name__}-{error}"[:60])
def test_recognises_every_back_ends_words(error: BaseException) -> None:
    assert is_oom(error)


@pytest.mark.parametrize("error", SOMETHING_ELSE, ids=lambda error: f"{type(error).__name__}-{error}"[:60])
def test_leaves_other_errors_alone(error: BaseException) -> None:
    assert not is_oom(error)


@pytest.mark.skipif(not hasattr(torch, "AcceleratorError"), reason="PyTorch 2.8 brought this class")
def test_accelerator_error_is_judged_by_its_text() -> None:
    assert is_oom(torch.AcceleratorError("out of memory"))
    assert not is_oom(torch.AcceleratorError("an illegal memory access was encountered"))


def test_a_real_failed_allocation_of_pytorch() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_oom(caught.value)


def test_a_real_failed_allocation_of_numpy() -> None:
    with pytest.raises(MemoryError) as caught:
        numpy.ones(2**60, dtype=numpy.uint8)
    assert is_oom(caught.value)


def test_the_class_is_pytorchs_own() -> None:
    assert OOM_EXCEPTION is torch.cuda.OutOfMemoryError
    assert issubclass(OOM_EXCEPTION, RuntimeError)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_real_failed_allocation_on_cuda() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.uint8, device="cuda")
    assert is_oom(caught.value)
