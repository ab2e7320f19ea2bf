"""An exception in a trial becomes its class of failure."""

import errno

import pytest
import torch
from safetensors import SafetensorError

from core.data.folder import DataError
from core.data.image import ImageError
from core.story.score import NoScoreError
from core.train.train import NanLossError
from sweep.failures import FAILURES
from sweep.trial import BlackImagesError, NoImagesError
from sweep.worker.worker import failure_class

OF_THE_DEVICE = "\nCUDA kernel errors might be asynchronously reported at some other API call"
CLASSES = [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "cuda_oom"),
    (RuntimeError("CUDA error: out of memory" + OF_THE_DEVICE), "cuda_oom"),
    (RuntimeError("CUDA driver error: out of memory"), "cuda_oom"),
    (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "cuda_oom"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "cuda_oom"),
    (RuntimeError("CUDA error: an illegal memory access was encountered" + OF_THE_DEVICE), "device_lost"),
    (MemoryError(), "host_oom"),
    (
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you "
            "tried to allocate 4096 bytes. Error code 12 (Cannot allocate memory)"
        ),
        "host_oom",
    ),
    (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk_full"),
    (
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        "disk_full",
    ),
    (DataError("images: no such folder"), "bad_image"),
    (ImageError("cannot be read: it is cut short or damaged"), "bad_image"),
    (NoImagesError("the filters keep 3 of 11 images"), "no_images"),
    (NanLossError("the loss was no number by step 20"), "nan_loss"),
    (BlackImagesError("image 1 is one single colour"), "black_pictures"),
    (NoScoreError("the score of image 1 is no number"), "black_pictures"),
    (ValueError("a mistake of ours"), "bug"),
    (RuntimeError("The size of tensor a (4) must match the size of tensor b (8)"), "bug"),
    (OSError(errno.EIO, "Input/output error"), "bug"),
]


@pytest.mark.parametrize(
    ("error", "reason"), CLASSES, ids=[f"{type(e).__name__}-{r}-{n}" for n, (e, r) in enumerate(CLASSES)]
)
def test_a_failure_has_the_class_of_what_was_raised(error: Exception, reason: str) -> None:
    assert failure_class(error) == reason
    assert reason in FAILURES


def test_torch_without_memory_on_the_cpu_is_host_oom() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert failure_class(raised.value) == "host_oom"
