"""Work of a fixed shape, recorded as one CUDA graph and replayed: the host no longer launches its kernels one by one.

Elsewhere than on CUDA, and where recording fails, the work is done as it is written.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .memory import holds_memory

WARM_CALLS = 3  # before work is recorded: libraries choose their kernels in them
MOST_SHAPES = 12  # of which a function keeps the graphs
_Shape: TypeAlias = tuple[tuple[torch.Size, torch.dtype], ...]
_streams: dict[torch.device, torch.cuda.Stream] = {}
_failed: list[torch.cuda.CUDAGraph] = []


def record(work: Callable[[], None], device: torch.device, what: str) -> torch.cuda.CUDAGraph | None:
    """Record what `work` does on `device`, without doing it; None, and one warning, where that fails.

    `work` must be done on tensors that stay where they are, synchronise nowhere, and have been done a few times before.
    """
    stream, graph = torch.cuda.current_stream(device), torch.cuda.CUDAGraph()
    random = torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    before = random.clone_state()
    try:
        # Other threads (those that train, and autograd's own) may allocate meanwhile.
        with torch.cuda.graph(graph, stream=side_stream(device), capture_error_mode="thread_local"):
            work()
    except RuntimeError as error:
        # What a recording that fails leaves behind: its stream, a generator that waits for a replay, and an allocator
        # that asks the graph, which therefore stays.
        torch.cuda.set_stream(stream)
        random.graphsafe_set_state(before)
        _failed.append(graph)
        reason = str(error.__context__ or error).strip().partition("\n")[0]
        print(f"warning: {what} runs without a CUDA graph, slower: {reason}", file=sys.stderr, flush=True)
        return None
    return graph


def side_stream(device: torch.device) -> torch.cuda.Stream:
    """One stream of a device on which work is warmed up and recorded: a recording needs another than the default."""
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)
    return _streams[device]


class Step:
    """`work` on tensors that stay where they are, as `record` needs it, done anew at each call.

    `state` are the tensors that it changes: should recording fail, they are put back as they were before.
    """

    def __init__(self, work: Callable[[], None], state: Sequence[Tensor], what: str, *, recorded: bool = True) -> None:
        self._work, self._state, self._what = work, state, what
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._device = state[0].device
        self._possible = recorded and self._device.type == "cuda"

    def __call__(self) -> None:
        if self._possible and self._graph is None and self._calls >= WARM_CALLS:
            before = [tensor.detach().clone() for tensor in self._state]
            self._graph = record(self._work, self._device, self._what)
            if self._graph is None:
                self._possible = False
                for tensor, value in zip(self._state, before, strict=True):
                    tensor.detach().copy_(value)
        self._calls += 1
        if self._graph is not None:
            self._graph.replay()
        elif self._possible:
            self._warm()
        else:
            self._work()

    def release(self) -> None:
        """Drop the graph, with the memory that it holds; the next calls begin as the first did."""
        self._graph, self._calls = None, 0

    def _warm(self) -> None:
        side, stream = side_stream(self._device), torch.cuda.current_stream(self._device)
        side.wait_stream(stream)
        with torch.cuda.stream(side):
            self._work()
        stream.wait_stream(side)


class Recorded:
    """A function of tensors on CUDA to one, without gradients or side effects; a graph for each shape that it gets.

    The first calls with a shape are done as they are. The least recently used graphs beyond MOST_SHAPES are dropped.
    """

    def __init__(self, function: Callable[..., Tensor], what: str) -> None:
        self._function, self._what = function, what
        self._calls: dict[_Shape, int] = {}
        self._graphs: OrderedDict[_Shape, tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]] = OrderedDict()
        self._possible = True
        holds_memory(self)

    def __call__(self, *inputs: Tensor) -> Tensor:
        shape = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        if shape not in self._graphs:
            self._calls[shape] = self._calls.get(shape, 0) + 1
            if not self._possible or self._calls[shape] <= WARM_CALLS or not self._record(shape, inputs):
                return self._function(*inputs)
        self._graphs.move_to_end(shape)
        graph, kept, output = self._graphs[shape]
        for place, tensor in zip(kept, inputs, strict=True):
            place.copy_(tensor)
        graph.replay()
        return output.clone()

    def release(self) -> None:
        """Drop all graphs, with the memory that they hold."""
        self._graphs.clear()
        self._calls.clear()

    def _record(self, shape: _Shape, inputs: tuple[Tensor, ...]) -> bool:
        while len(self._graphs) >= MOST_SHAPES:
            self._graphs.popitem(last=False)
        kept = [tensor.contiguous().clone() for tensor in inputs]
        found: list[Any] = []
        graph = record(lambda: found.append(self._function(*kept)), kept[0].device, self._what)
        self._possible = graph is not None
        if graph is None:
            return False
        self._graphs[shape] = graph, kept, found[0]
        return True
