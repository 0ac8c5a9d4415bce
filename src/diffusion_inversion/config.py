"""Settings of every stage: frozen models with units and ranges; an unknown key is an error."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Settings(BaseModel):
    """Base of every settings model: immutable, no unknown keys, finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class InvertSettings(Settings):
    """Stage 1: learn one conditioning vector c (tokens x text width) per image."""

    steps: int = Field(150, ge=0, description="AdamW steps per image; 0 keeps the initial vectors")
    keep_steps: tuple[int, ...] = Field((), description="steps whose vectors are kept too, e.g. 1000,2000,3000")
    learning_rate: float = Field(0.03, gt=0, description="constant AdamW learning rate (paper: 0.03)")
    weight_decay: float = Field(0.01, ge=0, description="AdamW weight decay (PyTorch's and the reference's default)")
    tokens: int = Field(5, ge=1, le=77, description="tokens per vector (paper: 5)")
    init: Literal["warm", "class-mean", "random"] = Field(
        "warm", description="start: adapter's guess, the mean of the class's guesses, or noise"
    )
    batch_size: int = Field(100, ge=1, description="images optimised side by side; each on its own all the same")
    eval_draws: int = Field(16, ge=1, description="fixed (timestep, noise) draws that measure each image's loss")
    resolution: int | None = Field(None, ge=8, description="side in px at which images are learned; default: the generator's")
    seed: int = Field(0, ge=0, description="run seed; every image derives its own from it and its id")

    @model_validator(mode="after")
    def _kept_steps_are_reached(self) -> InvertSettings:
        bad = [s for s in self.keep_steps if not 0 <= s <= self.steps]
        if bad:
            raise ValueError(f"keep_steps={bad}: outside 0..steps={self.steps}; lower them or raise steps")
        return self

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """Every step whose vectors are stored, the last one included, ascending."""
        return tuple(sorted({*self.keep_steps, self.steps}))


class SampleSettings(Settings):
    """Stage 2: draw variants around the learned vectors."""

    variants: int = Field(10, ge=1, description="images per learned vector (paper: 45)")
    guidance_scales: tuple[float, ...] = Field(
        (2.0,), min_length=1, description="diffusers' convention, 1 = off; the paper's w is this minus 1; one is drawn per image"
    )
    kept_steps: tuple[int, ...] = Field((), description="stage-1 steps to mix; default: the last one")
    noise_strength: float = Field(0.1, ge=0, description="lambda: standard deviation of the Gaussian noise added to c")
    interpolation: float = Field(0.1, ge=0, le=1, description="alpha: weight of a same-class partner's vector")
    scheduler: Literal["ddim", "dpm++"] = Field("dpm++", description="DDIM (eta = 0) or DPM-Solver++(2M)")
    inference_steps: int = Field(16, ge=1, le=1000, description="denoising steps (paper: 100 with DDIM)")
    image_size: int | None = Field(None, ge=4, description="side of the saved PNG in px; default: the data set's own, at most the generator's")
    batch_size: int = Field(100, ge=1, description="images denoised side by side")
    seed: int = Field(0, ge=0, description="run seed; every image derives its own from (seed, source id, variant)")


ARMS = ("real", "synthetic", "real+synthetic")


class TrainSettings(Settings):
    """Downstream task: one classifier per arm and seed, all with the same number of optimizer steps."""

    architecture: Literal["auto", "resnet20", "resnet18"] = Field("auto", description="auto: resnet20 on CPU, resnet18 on GPU")
    steps: int = Field(1000, ge=1, description="optimizer steps, the same for every arm")
    batch_size: int = Field(128, ge=2, description="images per step (paper: 128)")
    learning_rate: float = Field(0.1, gt=0, description="peak of the cosine (paper: 0.1)")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD momentum")
    weight_decay: float = Field(5e-4, ge=0, description="SGD weight decay (paper: 5e-4)")
    real_fraction: float = Field(0.5, gt=0, lt=1, description="share of each real+synthetic batch that is real")
    arms: tuple[Literal["real", "synthetic", "real+synthetic"], ...] = Field(ARMS, min_length=1, description="what to train on")
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="one classifier per arm and seed; at least 3 for a verdict")
