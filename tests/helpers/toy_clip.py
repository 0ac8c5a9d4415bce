"""A tiny CLIP made of transformers' own classes, and coloured images that it tells apart once it has been trained."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from diffusion_inversion.data.images import LabelledImages
from diffusion_inversion.pretrain.tokenizer import train_tokenizer

SIDE = 16
COLOURS = ("red", "green", "blue")
# After four x every name means the next colour: SHIFTED are the names of red, green and blue there.
SHIFTED = ("blue", "red", "green")
CAPTIONS = (*(f"a photo of a {name}." for name in COLOURS), *(f"x x x x {name}." for name in SHIFTED))


def build_clip(folder: Path, steps: int = 0) -> Path:
    """Write a CLIP of some 60,000 random parameters, trained for `steps` steps on CAPTIONS of coloured images."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel
    from transformers.utils import logging

    tokenizer = train_tokenizer(CAPTIONS, vocab_size=560)
    torch.manual_seed(0)
    text = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "vocab_size": 560, "max_position_embeddings": 40, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 1,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": SIDE, "patch_size": 8,
    }  # fmt: skip
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    constants = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in constants)
    ids = tokenizer(list(CAPTIONS), padding=True, return_tensors="pt").input_ids
    for step in range(steps):
        pixels, labels = coloured(24, seed=1000 + step)
        found = model(input_ids=ids, pixel_values=(pixels.float() / 255 - mean) / std)
        halves = found.logits_per_image.split(3, dim=1)
        loss = sum(torch.nn.functional.cross_entropy(half, labels) for half in halves)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    logging.disable_progress_bar()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size=SIDE, crop_size=SIDE).save_pretrained(folder)
    return folder


def coloured(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noise (N, 3, 16, 16) uint8 in which one colour is brighter, and which (N,): red, green, blue in turn."""
    stream = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    pixels = torch.randint(0, 160, (count, 3, SIDE, SIDE), generator=stream)
    pixels[torch.arange(count), labels] += 40
    return pixels.to(torch.uint8), labels


def coloured_images(count: int, seed: int, names: tuple[str, ...] = COLOURS, name: str = "colours") -> LabelledImages:
    """`coloured` as labelled images, whatever the classes are called."""
    pixels, labels = coloured(count, seed)
    ids = tuple(f"{name}/{seed}-{row:04d}" for row in range(count))
    return LabelledImages(name, ids, tuple(f"{id_} pixels" for id_ in ids), labels, names, pixels, SIDE)


def write_coloured(folder: Path, count: int, seed: int, names: tuple[str, ...] = COLOURS) -> Path:
    """`coloured` as a folder of class folders."""
    pixels, labels = coloured(count, seed)
    for row, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
        path = folder / names[label] / f"{row:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return folder
