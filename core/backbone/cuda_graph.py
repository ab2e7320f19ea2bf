"""CUDA graphs: what is the same at every step is recorded once and replayed, so that a GPU never waits for
Python.

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
works_here = True  # until a recording fails: torch 2.11 then keeps the memory of every later one, too


def record(work: Callable[..., T], *inputs: Tensor) -> Callable[..., T]:
    """`work` ready to be called again and again with inputs of the same shapes: as a CUDA graph on a GPU,
    else itself.

    What a replay returns, the next one overwrites. `work` is called with `inputs` once or twice on the way,
    so it must change nothing; it must not look at a value on the host. If it cannot be recorded, that is
    logged, and from then on all runs as it is. Raises torch.OutOfMemoryError.
    """
    global works_here
    if inputs[0].device.type != "cuda" or not works_here:
        return work
    # Under autocast with a cache the half-precision copies of what is trained would be recorded once, and
    # never change again.
    assert not (torch.is_autocast_enabled("cuda") and torch.is_autocast_cache_enabled())
    kept = [tensor.clone() for tensor in inputs]
    # libraries set themselves up at a first call, which a recording does not allow
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
        for cause in (error, error.__context__):  # what ends the recording fails too, and hides it
            if isinstance(cause, torch.OutOfMemoryError):
                raise cause from None
        log.warning(
            "steps are launched kernel by kernel, for they could not be recorded: %s", first_line(error)
        )
        works_here = False
        return work

    def replay(*given: Tensor) -> T:
        for tensor, new in zip(kept, given, strict=True):
            tensor.copy_(new, non_blocking=True)
        graph.replay()
        return results

    return replay


class Leash:
    """Keeps the host a step or two ahead of a GPU, so that a heartbeat after each step tells of work that is
    done.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._steps: deque[torch.cuda.Event] = deque()

    def step(self) -> None:
        """The step's work was handed to the device; wait until that of `STEPS_AHEAD` steps ago is done."""
        if not self._on_gpu:
            return
        done = torch.cuda.Event(blocking=True)
        done.record()
        self._steps.append(done)
        if len(self._steps) > STEPS_AHEAD:
            self._steps.popleft().synchronize()


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all recordings: libraries keep a workspace for each stream that they ever saw."""
    return torch.cuda.Stream(device)
