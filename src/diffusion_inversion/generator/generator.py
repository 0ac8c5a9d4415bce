"""The frozen latent diffusion model: any diffusers-format Stable Diffusion 1.x / 2.x, or the embedded `mini`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..config.sampling import SchedulerName
from ..engine.graphs import Recorded
from ..errors import UsageError
from .adapter import Adapter, load_adapter
from .checkpoints import building, check_parts, hash_weights, locate, read_config
from .device import bfloat16_is_fast, resolve_device
from .model_card import card_licence
from .networks import read_network, read_text_encoder
from .schedulers import make_scheduler
from .timesteps import Learned, read_timesteps

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    from .schedulers import Scheduler

EMPTY_PROMPT = ""  # what guidance by text leads away from
PLAIN_ATTENTION_SIDE = 32  # latent cells; above it the full score matrix costs more memory than it saves time
PLAIN_LATENT_SIDE = 16  # the same for latents of a network whose own side is larger (SD 1.4 at 128 px: a tenth faster)
VAE_PIXELS = 2**21  # pixels that the VAE sees at once: 2,048 images of 32 px, 8 of 512 px
Images: TypeAlias = Float[Tensor, "batch 3 height width"]
Latents: TypeAlias = Float[Tensor, "batch channels height width"]
Tokens: TypeAlias = Float[Tensor, "batch tokens features"]
Timesteps: TypeAlias = Int[Tensor, " batch"]
DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LatentDistribution:
    """What the encoder says of images: scaled latents' mean and log-variance, each (B, C, H/f, W/f) float32."""

    mean: Latents
    logvar: Latents

    def sample(self, noise: Latents) -> Latents:
        """mean + exp(logvar / 2) * noise; noise is standard normal of the same shape."""
        return self.mean + (0.5 * self.logvar).exp() * noise


class Generator:
    """A frozen latent diffusion model. Make one with `Generator.load`.

    It has `name`; `source` and `revision` (what `load` takes again); `hash` (sha256 over all weight files); `licence`
    (of its model card, or ""); `resolution` (native side in px); `vae_factor` (pixels per latent cell);
    `latent_channels`; `text_width`; `prediction_type` ("epsilon" or "v_prediction"); `device`; `dtype` (of the UNet;
    the VAE, the embeddings and every loss stay float32); `adapter` (mini only, else None); `learned` (timesteps for
    few steps, see `learned_timesteps`).

    In the signatures, floating point: `Images` (B, 3, H, W) in [-1, 1]; `Latents` (B, C, H / f, W / f) with f =
    vae_factor, scaled; `Tokens` (B, tokens, text_width). `Timesteps` (B,) are integers in 0..T-1.
    """

    def __init__(
        self,
        name: str,
        source: str,
        revision: str | None,
        weights_hash: str,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        scheduler_config: dict[str, Any],
        adapter: Adapter | None,
        device: torch.device,
        dtype: torch.dtype,
        licence: str = "",
        learned: Learned | None = None,
    ) -> None:
        from diffusers import DDPMScheduler

        self.name, self.source, self.revision = name, source, revision
        self.hash, self.licence, self.device, self.dtype = weights_hash, licence, device, dtype
        self.learned: Learned = learned or {}
        self.vae = _freeze(vae.to(device))
        self.unet = _freeze(unet.to(device))
        self.text_encoder = _freeze(text_encoder.to(device))
        self.tokenizer = tokenizer
        self.adapter = _freeze(adapter.to(device)) if adapter is not None else None
        self.scheduler_config = scheduler_config
        schedule = DDPMScheduler.from_config(scheduler_config)
        self.alphas_cumprod: Tensor = schedule.alphas_cumprod.float().to(device)
        self.prediction_type: str = schedule.config.prediction_type
        self.latent_channels: int = unet.config.in_channels
        self.text_width: int = unet.config.cross_attention_dim
        self.vae_factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.resolution: int = unet.config.sample_size * self.vae_factor
        self._plain = device.type == "cpu" and unet.config.sample_size <= PLAIN_ATTENTION_SIDE
        if self._plain:
            use_plain_attention(unet, vae)

    @classmethod
    def load(
        cls,
        name_or_path: str | Path = "mini",
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
    ) -> Generator:
        """Load `mini`, a local diffusers folder, or a hub id (downloaded; safetensors only; pin it by `revision`).

        `device="auto"` takes CUDA where there is one. `dtype="auto"` is bfloat16 where the device computes in
        it, else float32. Raises UsageError where a part is missing, is a pickle, or is not SD 1.x / 2.x.
        """
        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

        folder = locate(str(name_or_path), revision)
        check_parts(folder)
        target = resolve_device(device)
        precision = _resolve_dtype(dtype, target)
        adapter = load_adapter(folder / "adapter") if (folder / "adapter").is_dir() else None
        vae = read_network(AutoencoderKL, folder / "vae", torch.float32)
        unet = read_network(UNet2DConditionModel, folder / "unet", precision)
        text, tokenizer = read_text_encoder(folder)
        scheduler_config = read_config(folder / "scheduler" / "scheduler_config.json")
        with building(folder / "scheduler"):
            schedule = DDPMScheduler.from_config(scheduler_config)
        weights_hash = hash_weights(folder)
        return cls(
            name=folder.name if Path(name_or_path).is_dir() else str(name_or_path),
            source=str(folder.resolve()) if Path(name_or_path).is_dir() else str(name_or_path),
            revision=revision,
            weights_hash=weights_hash,
            vae=vae,
            unet=unet,
            text_encoder=text,
            tokenizer=tokenizer,
            scheduler_config=scheduler_config,
            adapter=adapter,
            device=target,
            dtype=precision,
            licence=card_licence(folder),
            learned=read_timesteps(folder, weights_hash, len(schedule.alphas_cumprod)),
        )

    @torch.no_grad()
    def encode(self, images: Images) -> LatentDistribution:
        """Encode images in [-1, 1], sides divisible by vae_factor, to the distribution of their scaled latents."""
        scale: float = self.vae.config.scaling_factor
        chunks = [self.vae.encode(chunk.to(self.device)).latent_dist for chunk in images.split(_vae_batch(images))]
        mean, logvar = torch.cat([d.mean for d in chunks]), torch.cat([d.logvar for d in chunks])
        return LatentDistribution(mean * scale, logvar + 2 * math.log(scale))

    @torch.no_grad()
    def decode(self, latents: Latents) -> Float[Tensor, "batch 3 image_height image_width"]:
        """Decode scaled latents to images (B, 3, H, W) float32, clamped to [-1, 1]."""
        scaled = latents.to(self.device).float() / self.vae.config.scaling_factor
        batch = _vae_batch(latents, self.vae_factor)
        return torch.cat([self.vae.decode(chunk).sample for chunk in scaled.split(batch)]).clamp(-1, 1)

    def predict(
        self, noisy_latents: Latents, timesteps: Timesteps | Float[Tensor, " batch"], embeddings: Tokens
    ) -> Latents:
        """The UNet's own output (noise or v, see prediction_type), float32, same shape as the latents.

        Timesteps are float where a sampler has them between two of the schedule's. Gradients flow to `embeddings`; the
        weights are frozen. On CUDA, without gradients, a shape that comes again is replayed as one CUDA graph.
        """
        if self.device.type == "cuda" and not torch.is_grad_enabled():
            return self._recorded(noisy_latents, timesteps, embeddings)
        return self._predict(noisy_latents, timesteps, embeddings)

    def _predict(self, noisy_latents: Latents, timesteps: Tensor, embeddings: Tokens) -> Latents:
        self._attend_by_size(max(noisy_latents.shape[-2:]))
        output: Tensor = self.unet(
            noisy_latents.to(self.dtype), timesteps, encoder_hidden_states=embeddings.to(self.dtype), return_dict=False
        )[0]
        return output.float()

    def add_noise(self, latents: Latents, noise: Latents, timesteps: Timesteps) -> Latents:
        """z_t = sqrt(alpha_bar_t) z + sqrt(1 - alpha_bar_t) eps (DDPM, arXiv 2006.11239, eq. 4)."""
        signal_scale, noise_scale = self._coefficients(timesteps)
        return signal_scale * latents + noise_scale * noise

    def target(self, latents: Latents, noise: Latents, timesteps: Timesteps) -> Latents:
        """What `predict` should return: eps, or v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) z (arXiv 2202.00512)."""
        if self.prediction_type == "epsilon":
            return noise
        signal_scale, noise_scale = self._coefficients(timesteps)
        return signal_scale * noise - noise_scale * latents

    @cached_property
    def folder(self) -> Path:
        """Where its files lie."""
        return locate(self.source, self.revision)

    @property
    def record(self) -> dict[str, str]:
        """What an image depends on: weight hash, precision, prediction type. Not the name: folders move."""
        return {
            "hash": self.hash,
            "dtype": str(self.dtype).removeprefix("torch."),
            "prediction_type": self.prediction_type,
        }

    @property
    def training_timesteps(self) -> int:
        """Number of timesteps T of the model's own schedule; timesteps are 0..T-1."""
        return len(self.alphas_cumprod)

    @torch.no_grad()
    def text_tokens(self, prompts: list[str]) -> Float[Tensor, "prompts tokens features"]:
        """Encode prompts to (B, model_max_length, width) float32, padded and cut as StableDiffusionPipeline does."""
        ids = tokenize(self.tokenizer, prompts).to(self.device)
        tokens: Tensor = self.text_encoder(ids)[0]
        return tokens

    @torch.no_grad()
    def image_tokens(self, images: Images) -> Tokens:
        """The adapter's tokens (B, 5, width) float32 for images in [-1, 1]; UsageError where there is no adapter."""
        from .features import profile

        if self.adapter is None:
            raise UsageError(f"{self.name}: has no image adapter, so it cannot describe images by tokens.")
        tokens: Tensor = self.adapter(profile(self._lite0, images.to(self.device)))
        return tokens

    def scheduler(self, name: SchedulerName, inference_steps: int, timesteps: Sequence[int] | None = None) -> Scheduler:
        """A fresh diffusers scheduler over this model's own noise schedule, timesteps set; see `make_scheduler`."""
        return make_scheduler(name, self.scheduler_config, inference_steps, timesteps)

    def learned_timesteps(self, name: SchedulerName, inference_steps: int) -> tuple[int, ...]:
        """Where so many steps of a sampler lie best, from first to last. Raises UsageError where none were learned."""
        counts = self.learned.get(name, {})
        if inference_steps in counts:
            return tuple(counts[inference_steps])
        there = ", ".join(f"{one} {','.join(map(str, sorted(of)))}" for one, of in self.learned.items()) or "none"
        raise UsageError(
            f"timestep_spacing=learned: {self.name} has no timesteps for {inference_steps} steps of {name} (there are: "
            f"{there}). Use a number of steps that has them, or timestep_spacing checkpoint."
        )

    @cached_property
    def _recorded(self) -> Recorded:
        return Recorded(self._predict, "the UNet")

    @cached_property
    def _lite0(self) -> nn.Module:
        from .features import load_lite0

        return load_lite0().to(self.device)

    def _attend_by_size(self, side: int) -> None:
        """On a CPU, give the UNet of a large network the attention that is quicker for latents of this side."""
        plain = side <= PLAIN_LATENT_SIDE
        if self.device.type != "cpu" or self.unet.config.sample_size <= PLAIN_ATTENTION_SIDE or plain == self._plain:
            return
        use_plain_attention(self.unet, plain=plain)
        self._plain = plain

    def _coefficients(self, timesteps: Timesteps) -> tuple[Float[Tensor, "batch 1 1 1"], Float[Tensor, "batch 1 1 1"]]:
        alpha_bar = self.alphas_cumprod[timesteps][:, None, None, None]
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


def initialise(architecture: Path, seed: int) -> dict[str, nn.Module]:
    """Build vae, unet and text_encoder with random weights from the config files below `architecture`."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    vae = AutoencoderKL.from_config(json.loads((architecture / "vae" / "config.json").read_text()))
    unet = UNet2DConditionModel.from_config(json.loads((architecture / "unet" / "config.json").read_text()))
    text_config = CLIPTextConfig(**json.loads((architecture / "text_encoder" / "config.json").read_text()))
    use_plain_attention(vae, unet)
    return {"vae": vae, "unet": unet, "text_encoder": CLIPTextModel(text_config)}


def noise_schedule(architecture: Path) -> Float[Tensor, " timesteps"]:
    """alpha_bar (T,) float32 of the scheduler config below `architecture`."""
    from diffusers import DDPMScheduler

    config = json.loads((architecture / "scheduler" / "scheduler_config.json").read_text())
    alphas_cumprod: Tensor = DDPMScheduler.from_config(config).alphas_cumprod
    return alphas_cumprod.float()


def save_checkpoint(
    folder: Path, modules: dict[str, Any], tokenizer: CLIPTokenizer, scheduler_config: dict[str, Any]
) -> None:
    """Write a diffusers-format Stable Diffusion folder: vae, unet, text_encoder, tokenizer, scheduler, model_index."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    StableDiffusionPipeline(
        vae=modules["vae"],
        unet=modules["unet"],
        text_encoder=modules["text_encoder"],
        tokenizer=tokenizer,
        scheduler=DDIMScheduler.from_config(scheduler_config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder, safe_serialization=True)


def use_plain_attention(*modules: nn.Module, plain: bool = True) -> None:
    """Explicit softmax(QK)V, since on CPUs the fused kernel's backward is slow at these sizes; or the fused kernel."""
    from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

    for module in modules:
        module.set_attn_processor(AttnProcessor() if plain else AttnProcessor2_0())  # type: ignore[operator]


def tokenize(tokenizer: CLIPTokenizer, prompts: list[str]) -> Int[Tensor, "prompts tokens"]:
    """Token ids (B, model_max_length) int64, padded and truncated as StableDiffusionPipeline does."""
    ids: Tensor = tokenizer(
        prompts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def _vae_batch(tensor: Tensor, factor: int = 1) -> int:
    """How many images or latents of this size the VAE takes at once, so that its memory stays bounded."""
    return max(1, VAE_PIXELS // (tensor.shape[-1] * tensor.shape[-2] * factor**2))


def _resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    if dtype not in DTYPES:
        raise UsageError(f"dtype={dtype!r}: unknown. Use one of: {', '.join(DTYPES)}.")
    chosen = DTYPES[dtype]
    if chosen is not None:
        return chosen
    return torch.bfloat16 if bfloat16_is_fast(device) else torch.float32


def _freeze(module: Any) -> Any:
    return module.eval().requires_grad_(False)
