"""Loss and gradients of one training step; on CUDA replayed as a graph: small networks wait for the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ..engine.graphs import WARM_CALLS, record, side_stream

LossOf: TypeAlias = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class _Captured:
    """A graph with the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    loss: Tensor
    gradients: tuple[Tensor | None, ...]


class Gradients:
    """Computes the loss of a step's batches and leaves the gradients in the parameters' `.grad`."""

    def __init__(
        self, loss_of: LossOf, parameters: Sequence[nn.Parameter], device: torch.device, *, recorded: bool = True
    ) -> None:
        """`loss_of(batches, goals)` gives a scalar; it may read nothing else that changes but the parameters.

        Random numbers in it come from the device's own generator, which is seeded before each call.
        """
        self.loss_of, self.parameters, self.device = loss_of, list(parameters), device
        self._graphs: dict[tuple[object, ...], _Captured] = {}
        self._seen: dict[tuple[object, ...], int] = {}
        self._plain = not recorded or device.type != "cuda"

    def __call__(self, batches: Sequence[Tensor], goals: Sequence[Tensor]) -> Tensor:
        """The loss, a scalar on the device; batches (B, 3, S, S) uint8 and goals (B,) or (B, classes), on the host.

        Gradients are new ones at every call: nothing is added up.
        """
        inputs = (*batches, *goals)
        if self._plain:
            return self._computed([one.to(self.device) for one in inputs])
        pinned = [one.pin_memory() for one in inputs]  # the device fetches them while the host goes on
        shape = tuple((one.shape, one.dtype) for one in inputs)
        if shape not in self._graphs:
            self._seen[shape] = self._seen.get(shape, 0) + 1
            moved = [one.to(self.device, non_blocking=True) for one in pinned]
            if self._seen[shape] <= WARM_CALLS:
                return self._beside(moved)
            self._capture(shape, moved)
            if self._plain:
                return self._computed(moved)
        captured = self._graphs[shape]
        for place, one in zip(captured.inputs, pinned, strict=True):
            place.copy_(one, non_blocking=True)
        captured.graph.replay()
        for parameter, gradient in zip(self.parameters, captured.gradients, strict=True):
            parameter.grad = gradient
        return captured.loss.clone()  # the next replay writes over it

    def _computed(self, inputs: Sequence[Tensor]) -> Tensor:
        for parameter in self.parameters:
            parameter.grad = None
        half = len(inputs) // 2
        loss = self.loss_of(inputs[:half], inputs[half:])
        loss.backward()
        return loss.detach()

    def _beside(self, inputs: Sequence[Tensor]) -> Tensor:
        """A plain step on a stream of its own, as PyTorch asks for before a graph is captured."""
        stream = side_stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            loss = self._computed(inputs)
        torch.cuda.current_stream(self.device).wait_stream(stream)
        return loss

    def _capture(self, shape: tuple[object, ...], inputs: Sequence[Tensor]) -> None:
        """Record the step, which computes nothing yet; from a failure on every step is a plain one."""
        places, losses = tuple(one.clone() for one in inputs), list[Tensor]()
        graph = record(lambda: losses.append(self._computed(places)), self.device, "training")
        if graph is None:
            self._plain = True
            return
        self._graphs[shape] = _Captured(graph, places, losses[0], tuple(one.grad for one in self.parameters))
