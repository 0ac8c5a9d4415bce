"""The samplers of stage 2: diffusers' own, each over the checkpoint's own noise schedule."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from ..config.sampling import SchedulerName
from ..errors import UsageError

if TYPE_CHECKING:
    from diffusers import (
        DDIMScheduler,
        DPMSolverMultistepScheduler,
        EulerDiscreteScheduler,
        PNDMScheduler,
        UniPCMultistepScheduler,
    )

    Scheduler: TypeAlias = (
        DDIMScheduler | PNDMScheduler | DPMSolverMultistepScheduler | UniPCMultistepScheduler | EulerDiscreteScheduler
    )


def ddim(config: dict[str, Any]) -> Scheduler:
    """DDIMScheduler, `clip_sample` off (arXiv 2010.02502)."""
    from diffusers import DDIMScheduler

    # PNDM checkpoints (SD 1.4) carry skip_prk_steps and the like, which DDIM ignores.
    return DDIMScheduler.from_config(config, clip_sample=False)


def pndm(config: dict[str, Any]) -> Scheduler:
    """PNDMScheduler without its Runge-Kutta steps (arXiv 2202.09778), as SD 1.4 ships it; one timestep twice."""
    from diffusers import DDPMScheduler, PNDMScheduler

    if not config.get("rescale_betas_zero_snr"):
        return PNDMScheduler.from_config(config, skip_prk_steps=True)
    # PNDM ignores rescale_betas_zero_snr, so it gets those betas themselves, and it divides by alpha_bar of the first
    # timestep, so that must not be the last of such a schedule: "leading" begins before it.
    betas = DDPMScheduler.from_config(config).betas.tolist()
    return PNDMScheduler.from_config(config, skip_prk_steps=True, trained_betas=betas, timestep_spacing="leading")


def dpm_plus_plus(config: dict[str, Any]) -> Scheduler:
    """DPMSolverMultistepScheduler, dpmsolver++ of order 2 (arXiv 2211.01095)."""
    from diffusers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler.from_config(
        config, algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero"
    )


def unipc(config: dict[str, Any]) -> Scheduler:
    """UniPCMultistepScheduler of order 2 (arXiv 2302.04867)."""
    from diffusers import UniPCMultistepScheduler

    return UniPCMultistepScheduler.from_config(config, solver_order=2, final_sigmas_type="zero")


def euler(config: dict[str, Any]) -> Scheduler:
    """EulerDiscreteScheduler (arXiv 2206.00364, algorithm 2 without noise); its timesteps are float32."""
    from diffusers import EulerDiscreteScheduler

    return EulerDiscreteScheduler.from_config(config)


SCHEDULERS: dict[SchedulerName, Callable[[dict[str, Any]], Scheduler]] = {
    "ddim": ddim,
    "pndm": pndm,
    "dpm++": dpm_plus_plus,
    "unipc": unipc,
    "euler": euler,
}


def make_scheduler(
    name: SchedulerName, config: dict[str, Any], inference_steps: int, timesteps: Sequence[int] | None = None
) -> Scheduler:
    """A fresh scheduler of `SCHEDULERS` from a checkpoint's scheduler config, timesteps set.

    They are `timesteps`, as many as steps and descending, or else spaced as the config says.
    They lie on the CPU, as the coefficients that schedulers look up by them do: on CUDA each step would wait for them.
    Raises UsageError for more steps than the schedule has room for, for a sampler that takes no timesteps, and where
    its arithmetic would not be finite.
    """
    from diffusers import DDPMScheduler

    available = len(DDPMScheduler.from_config(config).alphas_cumprod)
    if inference_steps > available:
        raise UsageError(f"inference_steps={inference_steps}: more than the model's {available} timesteps.")
    scheduler = SCHEDULERS[name](config)
    if timesteps is not None:
        if "timesteps" not in inspect.signature(scheduler.set_timesteps).parameters:  # some have only spacings
            raise UsageError(f"scheduler={name}: takes no timesteps from outside. Use one that does, such as dpm++.")
        assert len(timesteps) == inference_steps
        scheduler.set_timesteps(timesteps=list(timesteps), device="cpu")
        _require_finite_steps(name, scheduler)
        return scheduler
    scheduler.set_timesteps(inference_steps, device="cpu")
    if float(scheduler.timesteps.max()) > available - 1:  # "leading" spacing with an offset
        raise UsageError(
            f"inference_steps={inference_steps}: with the checkpoint's steps_offset the first of them lies outside its "
            f"{available} timesteps. Use fewer."
        )
    _require_finite_steps(name, scheduler)
    return scheduler


def _require_finite_steps(name: SchedulerName, scheduler: Scheduler) -> None:
    """Raise UsageError where the sampler would divide by zero: every image would be NaN."""
    steps = f"scheduler={name}, inference_steps={scheduler.num_inference_steps}"
    if name == "pndm" and float(scheduler.alphas_cumprod[int(scheduler.timesteps.max())]) == 0:
        raise UsageError(f"{steps}: begins where the schedule leaves no signal, and PNDM divides by it. Use fewer.")
    # Not the timesteps, which Karras' and others' spacings round: theirs may repeat.
    if name in ("dpm++", "unipc") and len(scheduler.sigmas.unique()) < len(scheduler.sigmas):
        raise UsageError(f"{steps}: has one noise level twice, and divides by the step between. Use fewer, or ddim.")
