"""Model cards of `mini` and `mini-clip`, from configs, training logs and figures, so that none is typed by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

from ..engine.store import commit_bytes
from ..engine.untrusted import read_json
from ..generator.timesteps import FILE as TIMESTEPS
from ..train.few_shot.clip_files import WEIGHTS, WORDS, hash_files
from .figures_text import figures_markdown
from .log import OF_EVERY_LOG, read_log
from .pieces import SCHEMA, found_in

CLIP_LOG = "clip.log.tsv"
EVEN = "trailing"  # the spacing of mini's own scheduler config
CORPUS = "Tiny-ImageNet (200 classes), research use under its own terms"
TEXT = """---
license: other
license_name: >-
  trained on {corpus}
---
# mini
A small latent diffusion model in diffusers' folder layout, embedded in diffusion-inversion. Made by `dinv pretrain`.

| part | what |
|---|---|
| vae | AutoencoderKL, {resolution} px, f = {factor}, {channels} latent channels, each normalised; {vae_million:.1f} M \
parameters |
| unet | UNet2DConditionModel {unet_widths} x {unet_layers} layers, {prediction}; {unet_million:.1f} M |
| text_encoder | CLIPTextModel, {text_layers} layers of width {text_width}, {text_tokens} tokens; {text_million:.1f} M |
| adapter | Lite0 profile of an image to {adapter_tokens} tokens (ours; StableDiffusionPipeline does not need it) |

Data: {corpus}; the adapter reads features of an EfficientNet-Lite0 trained on ImageNet. Imagenette and part of STL-10
come from ImageNet too: results on them are not free of that. CIFAR-10 is. The adapter also saw crops and "wide" views
of the photographs (zoomed, turned, grey, inverted, in other colours, blurred), so that cells, solar modules and
drawings lie within its reach; `val_wide` is the loss on such views of held-out images, `val_adapter` on the images
themselves.

| stage | images seen | minutes | on | last record of its log |
|---|---|---|---|---|
| vae | {vae_log} |
| unet | {unet_log} |

Measured by stage `figures` or `dinv generators compare` on data that it never saw (every number: `figures.json`):

{figures}

![class-name prompts, one class a column](samples.png)

Left to right: {shown}. Guidance 2, 16 DPM-Solver++ steps, not selected.

## Few steps
{timesteps}

Known weaknesses: {resolution} px only; objects are often blobs with the right colours and layout; prompts outside the
corpus's class names mean little to it; people, text and fine texture are poor. Not meant for making pictures to show:
it exists so that the whole method runs on a CPU.
"""
CLIP_TEXT = """---
license: other
license_name: >-
  trained on {corpus}
---
# mini-clip
A small CLIP (transformers' `CLIPModel`), embedded in diffusion-inversion as `--clip mini-clip`, for where no other can
be fetched. Made by `dinv pretrain --stage clip`.

| part | what |
|---|---|
| vision_model | {size} px in patches of {patch}, {vision_layers} layers of width {width} |
| text_model | {text_layers} layers of width {text_width}, {tokens} tokens, a vocabulary of {vocabulary:,} |
| in all | {million:.1f} M parameters, float16; features of {projected} numbers |

Data: {corpus}. Texts name the {classes} classes{hypernyms}. It was taught {words:,} words (`words.json`);
class names with others are an error.

| images seen | minutes | on | last record of its log |
|---|---|---|---|
| {log} |

Zero-shot accuracy over the {classes} classes, prompt "a photo of a ...": {accuracy} of {held_out:,} images that no
gradient saw (± standard error over images); chance is {chance:.3f}. sha256 of its files: `{hash}`.

Known weaknesses: {size} px only, and nothing beyond its words; a tiny model of few images. It stands in for
CLIP offline, and figures that it makes name it.
"""
NOT_MEASURED = "not measured"


def write_card(target: Path, folder: Path, shown: tuple[str, ...]) -> None:
    """Write `target`/README.md from its configs and from the logs and figures.json in `folder`.

    `shown` are the class names of samples.png, left to right. What was not measured says so.
    """
    vae, unet, text, scheduler, adapter = (
        json.loads((target / name).read_text())
        for name in (
            "vae/config.json",
            "unet/config.json",
            "text_encoder/config.json",
            "scheduler/scheduler_config.json",
            "adapter/config.json",
        )
    )
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    written = TEXT.format(
        resolution=unet["sample_size"] * factor,
        factor=factor,
        channels=vae["latent_channels"],
        vae_million=_million(target / "vae" / "diffusion_pytorch_model.safetensors"),
        unet_widths=tuple(unet["block_out_channels"]),
        unet_layers=unet["layers_per_block"],
        prediction=scheduler["prediction_type"],
        unet_million=_million(target / "unet" / "diffusion_pytorch_model.safetensors"),
        text_layers=text["num_hidden_layers"],
        text_width=text["hidden_size"],
        text_tokens=text["max_position_embeddings"],
        text_million=_million(target / "text_encoder" / "model.safetensors"),
        adapter_tokens=adapter["tokens"],
        corpus=CORPUS,
        vae_log=_last(folder / "vae.log.tsv"),
        unet_log=_last(folder / "unet.log.tsv"),
        figures=_figures(folder / "figures.json"),
        timesteps=timesteps_table(target / TIMESTEPS),
        shown=", ".join(shown),
    )
    commit_bytes(target / "README.md", written.encode())


def write_clip_card(target: Path, concepts: tuple[int, int], held_out: int) -> None:
    """Write `target`/README.md from the config and log in it.

    concepts: how many classes, and how many other names of them, the texts were made of. held_out: how many images
    the log's accuracy is of.
    """
    config = json.loads((target / "config.json").read_text())
    vision, text, (classes, others) = config["vision_config"], config["text_config"], concepts
    accuracy = float(read_log(target / CLIP_LOG)[-1]["val_accuracy"])
    hypernyms = f", or one of {others:,} synonyms and hypernyms of them in WordNet 3.0 (Princeton University)"
    written = CLIP_TEXT.format(
        corpus=CORPUS,
        size=vision["image_size"],
        patch=vision["patch_size"],
        vision_layers=vision["num_hidden_layers"],
        width=vision["hidden_size"],
        text_layers=text["num_hidden_layers"],
        text_width=text["hidden_size"],
        tokens=text["max_position_embeddings"],
        vocabulary=text["vocab_size"],
        million=_million(target / WEIGHTS),
        projected=config["projection_dim"],
        classes=classes,
        hypernyms=hypernyms if others else "",
        words=len(json.loads((target / WORDS).read_text())),
        log=_last(target / CLIP_LOG),
        accuracy=f"{accuracy:.3f} ± {math.sqrt(accuracy * (1 - accuracy) / held_out):.3f}",
        held_out=held_out,
        chance=1 / classes,
        hash=hash_files(target),
    )
    commit_bytes(target / "README.md", written.encode())


def timesteps_table(path: Path) -> str:
    """Which timesteps were learned, and how far they end from where many steps do, as a table."""
    if not path.is_file():
        return "No timesteps were learned for few steps (`dinv pretrain --stage timesteps`)."
    content = read_json(path)
    learned = [
        f"{count} of {solver} at {' '.join(map(str, timesteps))}"
        for solver, counts in content["timesteps"].items()
        for count, timesteps in counts.items()
    ]
    lines: list[str] = []
    for solver, counts in content["timesteps"].items():
        for count in counts:
            for on, guidance in (("held-out", "off"), ("guided", "2")):
                key = f"{solver}/{count}/{on}"
                if (found := found_in(content, key)) is None:
                    continue  # a later stage of the same command measures it
                least = min((found[name]["mean"], name) for name in found.keys() - {"learned", EVEN, "default"})[1]
                means = {name: f"{of['mean']:.3f} ± {of['error']:.3f}" for name, of in found.items()}
                number = str(content["pieces"][key]["made_from"]["vectors"])
                cells = [number, means["learned"], means[EVEN], f"{means[least]} ({least})", means["default"]]
                lines.append(f"| {solver} {count} | {guidance} | {' | '.join(cells)} |")
    text = "`--timestep-spacing learned` puts the steps where they end nearest to what many give from the same noise:"
    if not lines:
        return f"{text}\n{'; '.join(learned)}."
    head = [
        f"{text}\n{'; '.join(learned)}. Mean distance to that on held-out images ± standard error, root mean square of",
        "the latent, itself about 1:",
        "",
        "| steps | guidance | n | learned | even | best other of diffusers | 16 steps, even |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *lines])


def _figures(path: Path) -> str:
    """The tables of figures.json; its pictures stay beside it."""
    content = read_json(path) if path.is_file() else {}
    return figures_markdown(content, pictures=False) if content.get("schema") == SCHEMA else NOT_MEASURED


def _million(path: Path) -> float:
    """Parameters of a safetensors file, in millions."""
    from safetensors import safe_open

    with safe_open(path, "pt") as handle:
        names = list(handle.keys())
        count: int = sum(math.prod(handle.get_slice(name).get_shape()) for name in names)
    return count / 1e6


def _last(path: Path) -> str:
    """Images, minutes, device and every figure of the last record of a log, as cells."""
    if not path.is_file():
        return " | ".join([NOT_MEASURED] * 4)
    last = read_log(path)[-1]
    figures = ", ".join(f"{name} {value}" for name, value in last.items() if name not in OF_EVERY_LOG)
    return f"{int(last['samples']):,} | {float(last['seconds']) / 60:.1f} | {last['device']} | {figures}"
