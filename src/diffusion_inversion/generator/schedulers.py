"""The samplers of stage 2: diffusers' own, each over the checkpoint's own noise schedule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from ..config.settings import SchedulerName
from ..errors import UsageError

if TYPE_CHECKING:
    import torch
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


def make_scheduler(
    name: SchedulerName, config: dict[str, Any], inference_steps: int, device: torch.device
) -> Scheduler:
    """A fresh scheduler from a checkpoint's scheduler config, timesteps set on `device`.

    | name | diffusers' class |
    |---|---|
    | ddim | DDIMScheduler, `clip_sample` off (arXiv 2010.02502) |
    | pndm | PNDMScheduler without its Runge-Kutta steps (arXiv 2202.09778), as SD 1.4 ships it; one timestep twice |
    | dpm++ | DPMSolverMultistepScheduler, dpmsolver++ of order 2 (arXiv 2211.01095) |
    | unipc | UniPCMultistepScheduler of order 2 (arXiv 2302.04867) |
    | euler | EulerDiscreteScheduler (arXiv 2206.00364, algorithm 2 without noise); its timesteps are float32 |

    Raises UsageError for more steps than the schedule has room for.
    """
    from diffusers import (
        DDIMScheduler,
        DDPMScheduler,
        DPMSolverMultistepScheduler,
        EulerDiscreteScheduler,
        PNDMScheduler,
        UniPCMultistepScheduler,
    )

    schedule = DDPMScheduler.from_config(config)
    timesteps = len(schedule.alphas_cumprod)
    if inference_steps > timesteps:
        raise UsageError(f"inference_steps={inference_steps}: more than the model's {timesteps} timesteps.")
    match name:
        case "ddim":
            # PNDM checkpoints (SD 1.4) carry skip_prk_steps and the like, which DDIM ignores.
            scheduler = DDIMScheduler.from_config(config, clip_sample=False)
        case "pndm":
            # PNDM ignores rescale_betas_zero_snr, so it gets those betas themselves, and it divides by alpha_bar of the
            # first timestep, so that must not be the last of such a schedule: "leading" begins before it.
            own = {"trained_betas": schedule.betas.tolist(), "timestep_spacing": "leading"}
            rescaled = bool(config.get("rescale_betas_zero_snr"))
            scheduler = PNDMScheduler.from_config(config, skip_prk_steps=True, **(own if rescaled else {}))
        case "dpm++":
            scheduler = DPMSolverMultistepScheduler.from_config(
                config, algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero"
            )
        case "unipc":
            scheduler = UniPCMultistepScheduler.from_config(config, solver_order=2, final_sigmas_type="zero")
        case "euler":
            scheduler = EulerDiscreteScheduler.from_config(config)
    scheduler.set_timesteps(inference_steps, device=device)
    if float(scheduler.timesteps.max()) > timesteps - 1:  # "leading" spacing with an offset
        raise UsageError(
            f"inference_steps={inference_steps}: with the checkpoint's steps_offset the first of them lies outside its "
            f"{timesteps} timesteps. Use fewer."
        )
    return scheduler
