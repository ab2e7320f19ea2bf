"""Recognises exceptions that are the machine's fault: memory, disk space, a lost GPU. Needs no torch."""

import errno
import re

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def machine_trouble(error: Exception) -> str:
    """`cuda_oom`, `host_oom`, `device_lost` or `disk_full`; empty where the machine is not at fault."""
    text = str(error)  # safetensors and CUDA's libraries put into the message what others put into the class
    if getattr(error, "errno", None) in DISK_FULL or re.search(r"os error (28|27|122)\b", text):
        return "disk_full"
    if re.search("CUDA|CUBLAS|CUDNN", text) and re.search(
        "out of memory|ALLOC_FAILED|cudaErrorMemoryAllocation", text
    ):
        return "cuda_oom"
    if isinstance(error, RuntimeError) and re.search(
        r"CUDA error|cudaError|CUBLAS_STATUS|CUDNN_STATUS|Xid", text
    ):
        return "device_lost"
    # the latter: torch's allocator on the CPU
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        return "host_oom"
    return ""
