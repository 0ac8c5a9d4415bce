"""Optimizer, learning-rate curve and weight averaging of the pre-training stages; all of it fits in a CUDA graph."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

WARMUP_STEPS = 300
CLIP = 1.0
RMS = 0.2  # of an update, in units of the learning rate (arXiv 2502.16982, section 2.2)


def trapezoid(step: int, done: float, decay: float) -> float:
    """Factor of the learning rate: warm-up over 300 steps, constant, linear to zero over the last `decay` of a budget.

    `step` counts from empty moments, `done` is the share of the budget that is spent, 0 to 1 (arXiv 2405.18392).
    """
    return max(0.0, min(1.0, (step + 1) / WARMUP_STEPS, (1 - done) / decay))


def orthogonalise(matrices: Tensor, dtype: torch.dtype = torch.bfloat16, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration of Muon, computed in `dtype`: matrices (N, R, C) to near-orthogonal ones, float32.

    Quintic coefficients of https://kellerjordan.github.io/posts/muon/.
    """
    x = matrices.to(dtype)
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    result: Tensor = x.mT if tall else x
    return result.float()


class Muon(nn.Module):
    """Momentum orthogonalised, over matrices and flattened convolutions that are stacked by shape.

    An update has the root mean square RMS * lr whatever the shape, so that AdamW's rates carry over (Moonlight,
    arXiv 2502.16982, eq. 4). A module only so that its momentum is saved with the others' weights.
    """

    def __init__(
        self, parameters: list[nn.Parameter], momentum: float = 0.95, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        super().__init__()
        self.momentum, self.dtype = momentum, dtype
        shapes: dict[tuple[int, int], list[nn.Parameter]] = {}
        for parameter in parameters:
            shapes.setdefault((parameter.shape[0], parameter[0].numel()), []).append(parameter)
        self._groups = list(shapes.items())
        for index, (shape, members) in enumerate(self._groups):
            self.register_buffer(f"momentum_{index}", torch.zeros(len(members), *shape, device=members[0].device))

    @torch.no_grad()
    def step(self, lr: Tensor) -> None:
        """Update every parameter from its `grad`; `lr` is a scalar tensor."""
        for index, ((rows, columns), members) in enumerate(self._groups):
            average = self.get_buffer(f"momentum_{index}")
            gradients = torch.stack([_grad(p).reshape(rows, columns) for p in members])
            average.lerp_(gradients, 1 - self.momentum)
            update = orthogonalise(gradients.lerp(average, self.momentum), self.dtype)  # Nesterov
            update *= RMS * math.sqrt(max(rows, columns)) * lr
            for parameter, change in zip(members, update.unbind(0), strict=True):
                parameter.sub_(change.reshape(parameter.shape))


class MixedPrecision:
    """float32 weights, their moving average, and the copy in `dtype` that computes.

    `network` computes losses and collects gradients; `step` moves the weights of `model` by them (Muon for matrices and
    convolutions, AdamW for vectors and embeddings), follows with `ema`, and copies the weights back.
    """

    def __init__(
        self, model: nn.ModuleDict, dtype: torch.dtype, lr: float, lr_vectors: float, ema_decay: float
    ) -> None:
        device = next(model.parameters()).device
        self.model, self.ema = model.eval(), copy.deepcopy(model).requires_grad_(False)
        self.network = copy.deepcopy(model)
        for name, part in self.network.items():
            # The adapter's profiles need float32 until they are normalised. Not `part.to`, where diffusers warns.
            nn.Module.to(part, torch.float32 if name == "adapter" else dtype)
        matrices: list[nn.Parameter] = []
        vectors: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            (matrices if parameter.ndim >= 2 and "embedding" not in name else vectors).append(parameter)
        self.muon = Muon(matrices)
        self.lr, self.lr_vectors = (torch.zeros((), device=device) for _ in range(2))
        self.ema_weight = torch.zeros((), device=device)
        self._peaks, self._ema_decay = (lr, lr_vectors), ema_decay
        on_card = device.type == "cuda"
        self.adamw = torch.optim.AdamW(
            vectors, lr=self.lr_vectors, betas=(0.9, 0.99), weight_decay=0.0, fused=True, capturable=on_card
        )
        self._weights: list[Tensor] = list(model.parameters())
        self._copies: list[Tensor] = list(self.network.parameters())
        self._averages: list[Tensor] = list(self.ema.parameters())
        for weight, working in zip(self._weights, self._copies, strict=True):
            weight.grad, working.grad = torch.zeros_like(weight), torch.zeros_like(working)

    def set_rates(self, factor: float, step: int) -> None:
        """Set the learning rates to `factor` of their peaks, and the average's weight for step `step`."""
        for rate, peak in zip((self.lr, self.lr_vectors), self._peaks, strict=True):
            rate.fill_(peak * factor)
        self.ema_weight.fill_(1 - min(self._ema_decay, (1 + step) / (10 + step)))

    def scale_rates(self, factor: float) -> None:
        """Multiply the peaks of the learning rates, and the rates that are set now."""
        self._peaks = (self._peaks[0] * factor, self._peaks[1] * factor)
        for rate in (self.lr, self.lr_vectors):
            rate.mul_(factor)

    def restored(self) -> None:
        """Take over what was loaded into `model`, buffers included, and `adamw`."""
        for group in self.adamw.param_groups:
            group["lr"] = self.lr_vectors  # loading a state puts a copy there
        for working, loaded in zip(self.network.buffers(), self.model.buffers(), strict=True):
            working.copy_(loaded)  # statistics of the adapter: no step changes them
        self.refresh()

    def refresh(self) -> None:
        """Copy the weights of `model` to `network`."""
        with torch.no_grad():
            torch._foreach_copy_(self._copies, self._weights)

    def zero_grad(self) -> None:
        """Set the gradients of `network` to zero, in place."""
        torch._foreach_zero_([_grad(p) for p in self._copies])

    @torch.no_grad()
    def step(self) -> None:
        """One optimizer step from the gradients of `network`."""
        torch._foreach_copy_([_grad(p) for p in self._weights], [_grad(p) for p in self._copies])
        nn.utils.clip_grad_norm_(self._weights, CLIP)
        self.muon.step(self.lr)
        self.adamw.step()
        change = torch._foreach_sub(self._weights, self._averages)
        torch._foreach_mul_(change, self.ema_weight)
        torch._foreach_add_(self._averages, list(change))
        self.refresh()


def _grad(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
