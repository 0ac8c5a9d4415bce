"""The model card of `mini`, written from the training logs so that no figure in it is typed by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

from .log import read_log

TEXT = """# mini
A small latent diffusion model in diffusers' folder layout, embedded in diffusion-inversion. Made by `dinv pretrain`.

| part | what |
|---|---|
| vae | AutoencoderKL, 32 px, f = 4, 8 latent channels, each normalised; {vae_million:.1f} M parameters |
| unet | UNet2DConditionModel (64, 128) x 2 layers, cross-attention at both levels, v-prediction; {unet_million:.1f} M |
| text_encoder | CLIPTextModel, 3 layers of width 256, 16 tokens; {text_million:.1f} M |
| adapter | Lite0 profile of an image to 5 tokens (ours; a plain StableDiffusionPipeline does not need it) |

Data: Tiny-ImageNet at 32 px (100,000 images, 200 classes), research use under its own terms; the adapter reads
features of an EfficientNet-Lite0 trained on ImageNet. Imagenette and part of STL-10 come from ImageNet too: results on
them are not free of that. CIFAR-10 is.
Conditioning while training: adapter tokens 60 %, class-name prompts 30 %, empty prompt 10 %.

| stage | images seen | hours | last figures |
|---|---|---|---|
| vae | {vae_samples:,} | {vae_hours:.2f} | L1 {vae_l1}, PSNR on tiny-imagenet-32-val {vae_psnr} dB |
| unet | {unet_samples:,} | {unet_hours:.2f} | v-loss: adapter {unet_adapter}, name {unet_name}, empty {unet_empty}; \
on validation images: adapter {unet_val_adapter}, name {unet_val_name}, empty {unet_val_empty} |

Measured with `dinv pretrain --stage figures` on CIFAR-10, which it was never trained on (every number:
`figures.json`):

{figures}

![class-name prompts, one class a column](samples.png)

Left to right: {shown}. Guidance 2, 16 DPM-Solver++ steps, not selected.

Known weaknesses: 32 px only; objects are often blobs with the right colours and layout; prompts outside the 200
Tiny-ImageNet class names mean little to it; people, text and fine texture are poor. Not meant for making pictures
to show: it exists so that the whole method runs on a CPU.
"""


def write_card(target: Path, folder: Path, shown: tuple[str, ...]) -> None:
    """Write `target`/README.md from the logs and figures.json in `folder`; what was not measured says so.

    `shown` are the class names of samples.png, left to right.
    """
    from safetensors import safe_open

    def million(path: Path) -> float:
        with safe_open(path, "pt") as handle:
            names = list(handle.keys())
            count: int = sum(math.prod(handle.get_slice(name).get_shape()) for name in names)
        return count / 1e6

    vae, unet = read_log(folder / "vae.log.tsv")[-1], read_log(folder / "unet.log.tsv")[-1]
    figures_path = folder / "figures.json"
    rows = ["| figure | value |", "|---|---|"]
    if figures_path.is_file():
        rows += [f"| {key} | {value} |" for key, value in json.loads(figures_path.read_text())["summary"].items()]
    else:
        rows += ["| all | not measured |"]
    text = TEXT.format(
        vae_million=million(target / "vae" / "diffusion_pytorch_model.safetensors"),
        unet_million=million(target / "unet" / "diffusion_pytorch_model.safetensors"),
        text_million=million(target / "text_encoder" / "model.safetensors"),
        vae_samples=int(vae["samples"]),
        vae_hours=float(vae["seconds"]) / 3600,
        vae_l1=vae["l1"],
        vae_psnr=vae["val_psnr_db"],
        unet_samples=int(unet["samples"]),
        unet_hours=float(unet["seconds"]) / 3600,
        unet_adapter=unet["adapter"],
        unet_name=unet["name"],
        unet_empty=unet["empty"],
        unet_val_adapter=unet["val_adapter"],
        unet_val_name=unet["val_name"],
        unet_val_empty=unet["val_empty"],
        figures="\n".join(rows),
        shown=", ".join(shown),
    )
    (target / "README.md").write_text(text)
