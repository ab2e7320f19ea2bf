"""CUDA graphs: the work of a step is recorded once and replayed, so that a GPU never waits for Python.

A training step of Kolors' UNet is some fifteen thousand kernels, most of them short: launching them one by
one takes many times longer than running them (docs/measurements.md).
"""

import functools
import logging
from collections import deque
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from core.errors import first_line

T = TypeVar("T")
log = logging.getLogger(__name__)
STEPS_AHEAD = 2
graphs_usable = True  # until a recording fails: torch 2.11 then leaks the memory of every later one, too


def record(work: Callable[..., T], *inputs: Tensor) -> Callable[..., T]:
    """Turn `work` into a CUDA graph for inputs of the same shapes; on a CPU return `work` itself.

    Each replay overwrites what the last one returned. Recording calls `work` with `inputs` up to twice, so it
    must have no side effects; it must not read a value on the host. If recording fails, that is logged, and
    this and all later calls return `work` itself. Raises torch.OutOfMemoryError.
    """
    global graphs_usable  # noqa: PLW0603  what one recording showed holds for the whole process
    if inputs[0].device.type != "cuda" or not graphs_usable:
        return work
    # With autocast's cache the half-precision copies of the trained parameters would be recorded once and
    # never updated.
    assert not (torch.is_autocast_enabled("cuda") and torch.is_autocast_cache_enabled())
    kept = [tensor.clone() for tensor in inputs]
    # a first call outside the recording: libraries initialise themselves, which a recording does not allow
    side = _side_stream(inputs[0].device)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work(*kept)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            results = work(*kept)
    except RuntimeError as error:
        for cause in (error, error.__context__):  # ending the recording fails as well and hides the cause
            if isinstance(cause, torch.OutOfMemoryError):
                raise cause from None
        log.warning(
            "steps are launched kernel by kernel, for they could not be recorded: %s", first_line(error)
        )
        graphs_usable = False
        return work

    def replay(*given: Tensor) -> T:
        for tensor, new in zip(kept, given, strict=True):
            tensor.copy_(new, non_blocking=True)
        graph.replay()
        return results

    return replay


class StepsInFlight:
    """Limits how many steps the host is ahead of a GPU, so that a heartbeat reports work that is done."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._steps: deque[torch.cuda.Event] = deque()

    def step(self) -> None:
        """Call after queueing a step; waits until the step `STEPS_AHEAD` before it is done."""
        if not self._on_gpu:
            return
        done = torch.cuda.Event(blocking=True)
        done.record()
        self._steps.append(done)
        if len(self._steps) > STEPS_AHEAD:
            self._steps.popleft().synchronize()


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One stream for all recordings: libraries keep a workspace for each stream that they ever used."""
    return torch.cuda.Stream(device)
