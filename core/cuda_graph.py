"""CUDA graphs: what is the same at every step is recorded once and replayed, so that a GPU never waits for Python.

One step of Kolors' UNet is some ten thousand kernels, most of them short: launching them one by one takes many times
longer than running them (docs/measurements.md).
"""
import logging
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
log = logging.getLogger(__name__)
works_here = True  # until a recording fails: torch 2.11 then keeps the memory of every later one, too


def record(work: Callable[..., T], *inputs: Tensor) -> Callable[..., T]:
    """`work` ready to be called again and again with inputs of the same shapes: as a CUDA graph on a GPU, else itself.

    What a replay returns, the next one overwrites. `work` is called with `inputs` once or twice on the way, so it must
    change nothing; it must not look at a value on the host. If it cannot be recorded, that is logged, and from then on all
    runs as it is.
    """
    global works_here
    if inputs[0].device.type != "cuda" or not works_here:
        return work
    kept = [tensor.clone() for tensor in inputs]
    side = torch.cuda.Stream()  # libraries set themselves up at a first call, which a recording does not allow
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work(*kept)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            results = work(*kept)
    except RuntimeError as error:
        log.warning("steps are launched kernel by kernel, for they could not be recorded: %s", str(error).splitlines()[0])
        works_here = False
        return work

    def replay(*given: Tensor) -> T:
        for tensor, new in zip(kept, given, strict=True):
            tensor.copy_(new, non_blocking=True)
        graph.replay()
        return results

    return replay
