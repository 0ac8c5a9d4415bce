"""Stage `clip`: `mini-clip`, a small CLIP trained on the corpus, for where none can be fetched.

One text names many images of a batch, and an image has the names of all that it is a kind of, so every text that is
true of an image is a positive of it, not its own alone (UniCL, arXiv 2204.03610, section 3.2).
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.images import to_model_range
from ..engine.store import commit_bytes
from ..generator.generator import tokenize
from ..train.few_shot.clip_files import WORDS, words_of
from .corpus import Corpus
from .gan.diffaugment import augment, draw
from .loop import Task
from .optim import MixedPrecision
from .tokenizer import train_tokenizer
from .unet import TEMPLATES as PROMPTS
from .views import device_draws, near_view

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTokenizer

TEMPLATES = (*PROMPTS, "a photo of a {}.")
VALIDATION_TEMPLATE = TEMPLATES.index("a photo of a {}.")
VOCABULARY, MOST_TOKENS, WIDTH, PROJECTED = 2048, 32, 192, 128
PATCHES = 8  # along a side
NAME_SHARE = 0.5  # of the texts; the others say what the image is a kind of
MOST_COMMON = 0.25  # share of the classes above which a hypernym says nothing
LARGEST_SCALE = 100.0
LR, LR_VECTORS, LR_BATCH = 3e-3, 1e-3, 1024  # rates at batches of LR_BATCH; elsewhere they follow the square root
EMA_DECAY, DECAY_SHARE = 0.999, 0.25
VALIDATION_IMAGES = 1_000


@dataclass(frozen=True)
class Concepts:
    """What texts name: the classes, in their order, then what these are kinds of."""

    names: tuple[str, ...]  # (T,)
    true: Tensor  # (C, T) bool: which are true of an image of each class

    @classmethod
    def of(cls, classes: tuple[str, ...], above: Mapping[str, tuple[str, ...]]) -> Concepts:
        """`above`: class => its hypernyms; those of nearly all classes are left out."""
        spread: dict[str, list[int]] = {name: [label] for label, name in enumerate(classes)}
        for label, name in enumerate(classes):
            for word in above.get(name, ()):
                if label not in spread.setdefault(word, []):
                    spread[word].append(label)
        most = max(1.0, MOST_COMMON * len(classes))
        kept = {word: of for word, of in spread.items() if word in classes or len(of) <= most}
        true = torch.zeros(len(classes), len(kept), dtype=torch.bool)
        for column, of in enumerate(kept.values()):
            true[of, column] = True
        return cls(tuple(kept), true)

    def texts(self) -> list[str]:
        """Every prompt: the templates of the first name, of the second, ..."""
        return [template.format(name) for name in self.names for template in TEMPLATES]


def new_tokenizer(concepts: Concepts) -> CLIPTokenizer:
    """Learned from the prompts, always the same from the same ones."""
    tokenizer = train_tokenizer(concepts.texts(), VOCABULARY)
    tokenizer.model_max_length = MOST_TOKENS
    return tokenizer


def new_clip(size: int, tokenizer: CLIPTokenizer, seed: int) -> CLIPModel:
    """A CLIP of random weights for images of `size` px: 6 layers for images, 3 for texts."""
    from transformers import CLIPConfig, CLIPModel

    # gelu: quick_gelu, the default, is three kernels in place of one.
    shape = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 3, "hidden_act": "gelu"}
    text = shape | {
        "num_hidden_layers": 3, "vocab_size": len(tokenizer), "max_position_embeddings": MOST_TOKENS,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = shape | {"num_hidden_layers": 6, "image_size": size, "patch_size": size // PATCHES}
    torch.manual_seed(seed)
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=PROJECTED))


def contrastive_loss(logits: Tensor, positives: Tensor) -> Tensor:
    """Mean of both directions' cross-entropy, the target spread evenly over the positives (UniCL, eq. 2 to 4).

    logits: (B, B) of images by texts. positives: (B, B) bool, the diagonal true: which text is true of which image.
    """
    spread = positives.float()
    of_images = F.cross_entropy(logits, spread / spread.sum(1, keepdim=True))
    of_texts = F.cross_entropy(logits.T, (spread / spread.sum(0, keepdim=True)).T)
    return (of_images + of_texts) / 2


class ClipTask(Task):
    """Contrast of near views, in other colours and with a hole, with prompts of their classes' names and hypernyms."""

    name = "clip"
    columns = ("contrastive",)
    validated = ("val_accuracy",)
    decay_share = DECAY_SHARE

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: CLIPTokenizer,
        concepts: Concepts,
        corpus: Corpus,
        held_out: Corpus,
        device: torch.device,
        dtype: torch.dtype,
        batch_size: int,
    ) -> None:
        scale = (batch_size / LR_BATCH) ** 0.5
        self.batch_size, self.dtype, self.device = batch_size, dtype, device
        network = nn.ModuleDict({"clip": model.to(device)})
        self.weights = MixedPrecision(network, dtype, LR * scale, LR_VECTORS * scale, EMA_DECAY)
        self.images, self.labels = corpus.images.to(device), corpus.labels.to(device)
        rows = torch.randperm(len(held_out.labels), generator=torch.Generator().manual_seed(0))[:VALIDATION_IMAGES]
        self.held_out = held_out.rows(rows)
        ids = tokenize(tokenizer, concepts.texts())
        # The text encoder looks back only, so what follows the first end token changes nothing.
        ids = ids[:, : int((ids == tokenizer.eos_token_id).int().argmax(1).max()) + 1]
        self.prompts = ids.unflatten(0, (len(concepts.names), len(TEMPLATES))).to(device)  # (T, templates, tokens)
        self.true = concepts.true.to(device)
        others = self.true.float()
        others[:, : len(others)].fill_diagonal_(0)
        count = others.sum(1, keepdim=True)
        chance = (1 - NAME_SHARE) * others / count.clamp(min=1)
        chance[:, : len(others)] += torch.where(count > 0, NAME_SHARE, 1.0) * torch.eye(len(others), device=device)
        self.chance = chance.log()  # (C, T): that a text about an image of a class names a concept

    def losses(self) -> tuple[Tensor, Tensor]:
        """The loss of a batch of images, each with a text that is true of it."""
        clip, device, count = cast("CLIPModel", self.weights.network["clip"]), self.device, self.batch_size
        rows = torch.randint(len(self.labels), (count,), device=device)
        labels, images = self.labels[rows], near_view(to_model_range(self.images[rows]), device_draws(device))
        images = augment(images, draw(count, images.shape[-1], device=device), ("color", "cutout"))
        drawn = torch.rand(count, self.true.shape[1], device=device).clamp(1e-20)
        concepts = (self.chance[labels] - (-drawn.log()).log()).argmax(1)  # Gumbel-max
        templates = torch.randint(len(TEMPLATES), (count,), device=device)
        logits = scaled_cosines(clip, images.to(self.dtype), self.prompts[concepts, templates])
        loss = contrastive_loss(logits, self.true[labels][:, concepts])
        return loss, loss.detach()[None]

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Zero-shot accuracy on held-out images over the classes of the corpus."""
        clip, ids = cast("CLIPModel", self.weights.ema["clip"]), self.prompts[: len(self.true), VALIDATION_TEMPLATE]
        hits = 0
        for images, labels in zip(self.held_out.images.split(250), self.held_out.labels.split(250), strict=True):
            found = scaled_cosines(clip, to_model_range(images.to(self.device)), ids).argmax(1).cpu()
            hits += int((found == labels).sum())
        return {"val_accuracy": hits / len(self.held_out.labels)}


def scaled_cosines(clip: CLIPModel, images: Tensor, ids: Tensor) -> Tensor:
    """CLIP's logits (B, P) float32 of images (B, 3, S, S) in [-1, 1] by prompts, token ids (P, L)."""
    seen = clip.visual_projection(clip.vision_model(pixel_values=images).pooler_output)
    said = clip.text_projection(clip.text_model(input_ids=ids).pooler_output)
    scale = clip.logit_scale.float().clamp(max=math.log(LARGEST_SCALE)).exp()
    logits: Tensor = scale * F.normalize(seen.float(), dim=1) @ F.normalize(said.float(), dim=1).T
    return logits


def export_clip(task: ClipTask, tokenizer: CLIPTokenizer, concepts: Concepts, folder: Path) -> None:
    """Write the averaged weights as a folder that `--clip` takes, float16, with the words that it was taught."""
    from transformers import CLIPImageProcessor

    model = copy.deepcopy(cast("CLIPModel", task.weights.ema["clip"])).cpu()
    with torch.no_grad():
        model.logit_scale.clamp_(max=math.log(LARGEST_SCALE))
    size = task.images.shape[-1]
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size=size, crop_size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(folder)
    words = sorted({word for name in concepts.names for word in words_of(name)})
    commit_bytes(folder / WORDS, (json.dumps(words, indent=0) + "\n").encode())
