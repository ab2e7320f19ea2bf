"""Time and memory of a piece of work on a device."""

import gc
import time
from dataclasses import dataclass

import torch


@dataclass
class Stopwatch:
    """Seconds between marks; a mark waits until the device is done. The peak is that since the start."""

    device: torch.device

    def __post_init__(self) -> None:
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        self.marks = [time.perf_counter()]

    def mark(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.marks.append(time.perf_counter())

    def seconds(self, first: int = 0, last: int = -1) -> float:
        return self.marks[last] - self.marks[first]

    @property
    def peak_gb(self) -> float | None:
        """What tensors took at most, weights included, in 1e9 bytes; None on a CPU."""
        return torch.cuda.max_memory_allocated(self.device) / 1e9 if self.device.type == "cuda" else None


def matmul_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """TFLOP/s of a large matrix product: what this device can do at best, to guess how long the work will
    take.
    """
    side = 8192 if device.type == "cuda" else 512
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    watch = Stopwatch(device)
    for count in (3, 10):
        for _ in range(count):
            matrix @ matrix
        watch.mark()
    return 10 * 2 * side**3 / 1e12 / watch.seconds(1, 2)
