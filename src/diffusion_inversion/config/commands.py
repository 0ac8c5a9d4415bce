"""Settings of the commands beside the method: metrics, audit, membership, predict, export, pretrain, gan and so on."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from .few_shot import CLASS, each_names_the_class
from .settings import DataSettings, GeneratorSettings, Settings, setting


def same(model: type[Settings], name: str) -> Any:
    """A field as another model has it."""
    return model.model_fields[name]


def groups() -> Any:
    return setting(
        None,
        "text file with the group of each image, such as its source: resampled together; lines in the images' order, "
        "or id, tab, group",
        unset="the sources that a run recorded, else each image alone",
    )


class MetricsSettings(Settings):
    """How generated images are measured against real ones: the keywords of `measure`."""

    extractor: str = setting(
        "lite0", "lite0, inception, dinov2, clip or timm:<model>; metric names carry it as a suffix"
    )
    weights: str | None = setting(None, "local file or folder of the extractor's weights")
    k: int = setting(5, "neighbours of precision, recall, density and coverage")
    real_split: Literal["train", "test"] = setting("train", "part of REAL")
    generated_split: Literal["train", "test"] = setting("train", "part of GENERATED")
    size: int | None = same(DataSettings, "size")
    limit: int | None = same(DataSettings, "limit")
    seed: int = setting(0, "of subsets and intervals")
    real_groups: str | None = groups()
    generated_groups: str | None = groups()
    device: str = same(GeneratorSettings, "device")
    root: str | None = same(DataSettings, "root")


def arm_of_use() -> Any:
    return setting(
        None,
        "the arm whose classifiers are used, as in the report",
        unset="the one that the verdict recommends, else real+synthetic",
    )


class PredictSettings(Settings):
    """What the classifiers of a run are asked, and how they answer."""

    images: str = setting(
        ..., "folder of images at any depth, an image, a parquet file, hf:<id>, or a built-in name", option="IMAGES"
    )
    out: Path = setting(..., "file to write: .csv, .jsonl or .parquet")
    arm: str | None = arm_of_use()
    abstain_below: float = setting(0.0, "mark predictions of less confidence as abstained", ge=0, le=1)
    overwrite: bool = setting(False, "replace the file where it exists")
    batch_size: int = setting(250, "images side by side", ge=1)
    device: str = same(GeneratorSettings, "device")
    root: str | None = same(DataSettings, "root")


SourceIds = Literal["hashed", "plain", "none"]
ImageFormat = Literal["imagefolder", "webdataset", "parquet", "fiftyone", "coco-classification"]


def source_ids() -> Any:
    return setting(
        "hashed",
        "what images, tables and names of files have in place of ids of your data: hashes by a salt that stays in the "
        "run, the ids, or nothing",
        "ours",
    )


def asked_licence(unset: str) -> Any:
    return setting(None, "licence of the images: an id of SPDX or of the hub, such as cc-by-4.0, or words", unset=unset)


class CredentialSettings(Settings):
    """With what images are signed that leave a run."""

    c2pa_certificate: Path | None = setting(
        None, "sign each image by C2PA (Content Credentials): PEM file of the certificate and those above it"
    )
    c2pa_key: Path | None = setting(None, "PEM file of its private key")

    @model_validator(mode="after")
    def _a_certificate_has_its_key(self) -> CredentialSettings:
        if (self.c2pa_certificate is None) != (self.c2pa_key is None):
            raise ValueError("c2pa_certificate and c2pa_key: give both or none")
        return self


class ExportSettings(CredentialSettings):
    """What of a run is written for other programs, and how."""

    to: Literal["onnx", "safetensors", ImageFormat] = setting(
        ..., "of the classifiers the first two, of the synthetic images the others"
    )
    out: Path = setting(..., "folder to make; one that holds anything is refused")
    arm: str | None = arm_of_use()
    licence: str | None = asked_licence("none is named; terms of the sources are said all the same")
    source_ids: SourceIds = source_ids()
    with_vectors: bool = setting(
        False,
        "write the learned vectors too, which redraw their images; else no vector leaves the run",
        option="with-vectors/--without-vectors",
    )


class PushSettings(CredentialSettings):
    """How the synthetic images of a run are published as a data set of the Hugging Face hub."""

    hub_id: str = setting(..., "<owner>/<name> of the data set", option="HUB_ID")
    out: Path = setting(..., "folder to make of what is uploaded; one that holds anything is refused")
    dry_run: bool = setting(False, "make the folder and upload nothing")
    licence: str | None = asked_licence("other where DATA names a licence, else unknown")
    source_ids: SourceIds = source_ids()
    public: bool = setting(False, "let everybody see the data set; else it is private")
    update: bool = setting(False, "write over a data set that exists")

    @field_validator("hub_id")
    @classmethod
    def _hub_id_is_one_of_the_hub(cls, hub_id: str) -> str:
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public there, by a lazy import that mypy does not see

        if not re.fullmatch(r"[\w.-]+/[\w.-]+", hub_id):
            raise ValueError("give <owner>/<name>, both of letters, digits, dots, dashes and underscores")
        try:
            validate_repo_id(hub_id)
        except HFValidationError as error:
            raise ValueError(f"the hub takes no such name; give another one ({error})") from error
        return hub_id


class AuditSettings(Settings):
    """How copies of training images are looked for among synthetic ones.

    "Carlini" is Carlini et al., arXiv 2301.13188, section 5.1.
    """

    copies: Literal["redraw", "report", "refuse", "off"] = setting(
        "redraw",
        "images that copy training images are drawn again or else left out, only named, end the run where they are "
        "more than chance explains, or are not looked for",
        "ours",
    )
    false_positives: float = setting(
        0.01,
        "share of images that copy nothing that may be taken for copies",
        "ours",
        gt=0,
        lt=1,
    )
    neighbours: int = setting(
        10,
        "of a training image, whose mean distance is the unit of distances to it",
        "ours; Carlini: 50 of 50,000",
        ge=1,
    )
    extractor: str | None = setting(None, "compare in its features too: dinov2, clip, timm:<model> and so on")
    weights: str | None = setting(None, "local file or folder of the extractor's weights, in safetensors")
    planted: int = setting(
        30, "training images that are copied on purpose at each level: how many copies would be found", "ours", ge=0
    )
    limit: int | None = setting(None, "audit a random subset of so many synthetic images", ge=1)
    seed: int = setting(0, "of subset and planted copies", "ours", ge=0)
    device: str = same(GeneratorSettings, "device")


class MembershipSettings(Settings):
    """How it is measured what a run gives away of which images it was made from."""

    held: tuple[Literal["vectors", "synthetic", "classifier"], ...] = setting(
        ("vectors", "synthetic", "classifier"), "what an adversary holds", "ours", min_length=1, option="of"
    )
    limit: int = setting(200, "training images that are tried, and at most as many held-out ones", "ours", ge=20)
    false_positives: float = setting(
        0.01,
        "share of held-out images that may be taken for training images",
        "ours; arXiv 2112.03570: 0.001",
        gt=0,
        lt=1,
    )
    draws: int = setting(8, "(timestep, noise) draws of a denoising loss", "ours", ge=1)
    seed: int = setting(0, "of the images that are tried, the draws and the intervals", "ours", ge=0)
    out: Path | None = setting(None, "folder to write membership.json to, beside the one that RUN keeps")
    device: str = same(GeneratorSettings, "device")


class StripsSettings(Settings):
    """Which strips of variants are drawn (paper, figures 9 and 10)."""

    images: int = setting(6, "sources, spread over the classes", "ours", ge=1, le=50)
    interpolations: tuple[Annotated[float, Field(ge=-1, le=1)], ...] = setting(
        (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0), "alpha of each cell, without noise", "ours", min_length=1, max_length=20
    )
    noise_strengths: tuple[Annotated[float, Field(ge=0, le=10)], ...] = setting(
        (0.0, 0.1, 0.2, 0.4, 0.8), "lambda of each cell, without interpolation", "ours", min_length=1, max_length=20
    )
    device: str = same(GeneratorSettings, "device")


class CompareSettings(Settings):
    """What generators are compared on, and how much of it."""

    data: list[str] = setting([], "NAME=DATA: a domain whose training images are learned and drawn again")
    test: list[str] = setting([], "NAME=DATA: held-out images of a domain: what the autoencoder costs")
    target_train: str | None = setting(None, "DATA whose labels a judge looks for in drawings")
    target_test: str | None = setting(None, "DATA: test images of the target")
    judge: Path | None = setting(None, "classifier of the target (safetensors)", unset="one is trained")
    corpus: str | None = setting(None, "DATA of held-out images whose class names are drawn: quality of samples")
    images: int = setting(100, "training images a domain", ge=2)
    sources: int = setting(1000, "images of the target whose label is looked for", ge=2)
    samples: int = setting(10_000, "prompted samples", ge=2)
    steps: tuple[Annotated[int, Field(ge=1)], ...] = setting(
        (25, 50, 100), "stage-1 steps to look at, beside the guess", min_length=1
    )
    guidance_scales: tuple[float, ...] = setting((1.0, 1.5, 2.0), "for label agreement", min_length=1)


class PretrainSettings(Settings):
    """How the embedded generator is made."""

    corpus: Path = setting(..., "parquet file with image and label to train on")
    validation: Path | None = setting(
        None, "the same for validation; without it 5,000 images of the corpus are held out"
    )
    out: Path = setting(Path("pretraining"), "folder for states, caches, logs and the result")
    stages: tuple[Literal["vae", "decoder", "latents", "unet", "export", "figures", "timesteps", "clip"], ...] = (
        setting(("vae", "latents", "unet", "export"), "", option="stage", min_length=1)
    )
    size: int = setting(64, "side of the images in px: 64 or 32")
    vae_samples: int | None = setting(None, "images the autoencoder sees", unset="1,000,000")
    vae_minutes: float | None = setting(None, "train the autoencoder for this long instead")
    decoder_samples: int | None = setting(None, "images the decoder is sharpened with", unset="100,000")
    decoder_minutes: float | None = setting(None, "sharpen the decoder for this long instead")
    unet_samples: int | None = setting(None, "images the denoiser sees", unset="8,900,000")
    unet_minutes: float | None = setting(None, "train the denoiser for this long instead", option="minutes")
    clip_samples: int | None = setting(None, "images mini-clip sees, in stage clip", unset="5,000,000")
    clip_minutes: float | None = setting(None, "train mini-clip for this long instead")
    wordnet: Path | None = setting(
        None, "for stage clip: folder of WordNet's index.noun and data.noun, whose hypernyms are prompts too"
    )
    part_minutes: float | None = setting(None, "save and end after this long; the same command goes on")
    batch_size: int | None = setting(None, "of the denoiser and of mini-clip", unset="1,024 on CUDA, 128 elsewhere")
    device: str = same(GeneratorSettings, "device")
    target_train: str | None = setting(None, "for stage figures: DATA whose labels are judged")
    target_test: str | None = setting(None, "for stage figures: its test images")
    judge: Path | None = setting(None, "for stage figures: a classifier of the target")
    data: list[str] = setting([], "for stage figures: NAME=DATA, a domain")
    test: list[str] = setting([], "for stage figures: NAME=DATA, its test images")
    beside: list[str] = setting([], "for stage figures: LABEL=GENERATOR, another one")
    start_from: str | None = setting(None, "go on from the weights of mini or of a folder made here")


class LecfSettings(Settings):
    """LECF (He et al. 2022, arXiv 2210.07574): many sentences of each class, of whose images CLIP keeps some.

    "He" is that paper with its repository, "text" Zhou et al., who scan the threshold.
    """

    clip: str = setting(
        ..., "mini-clip, folder of a transformers CLIP in safetensors, or a hub id", "He: OpenAI's RN50"
    )
    clip_revision: str | None = setting(None, "revision of a hub id of CLIP")
    thresholds: tuple[float, ...] = setting(
        (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.97),
        "least probability that CLIP gives an image's class, a set for each; of too few the most confident fill up",
        "text; He: 1 / classes",
        min_length=1,
    )
    per_class: int | None = setting(
        None, "images of each class in a set", unset="as many as DATA trains on", ge=1, option="images-per-class"
    )
    language: str | None = setting(
        None,
        "folder or hub id of a T5 that makes sentences of words, such as mrm8488/t5-base-finetuned-common_gen (He)",
        unset="a bank of 60 sentence frames",
    )
    sentences: int | None = setting(None, "sentences of each class", unset="200 of a T5 (He), else all frames", ge=1)
    templates: list[str] = setting(
        [f"a photo of a {CLASS}."],
        "prompt of a class as CLIP reads it; several are averaged",
        unset=f"a photo of a {CLASS}.",
        option="template",
        min_length=1,
    )
    soft_weight: float = setting(
        0.5, "of CLIP's answers in the target, beside the label", "He, soft-target cross-entropy", ge=0, le=1
    )
    soft_temperature: float = setting(2.0, "of these answers", "He", gt=0)
    real_guidance: float | None = setting(
        None,
        "begin at a real image of the class, noised so far: 0 is the image, 1 is noise (He: 0.15 for 16 shots, 0.2, "
        "0.35 and 0.4 for 8, 4 and 2, 0.5 for 1)",
        unset="noise alone",
        ge=0,
        le=1,
    )

    _templates = field_validator("templates")(each_names_the_class)

    @field_validator("thresholds", mode="before")
    @classmethod
    def _one_number_is_enough(cls, thresholds: object) -> object:
        return (thresholds,) if isinstance(thresholds, (int, float)) else thresholds

    @field_validator("thresholds")
    @classmethod
    def _probabilities_ascend(cls, thresholds: tuple[float, ...]) -> tuple[float, ...]:
        if not 0 <= min(thresholds) <= max(thresholds) <= 1 or any(b <= a for a, b in pairwise(thresholds)):
            raise ValueError("give numbers in 0..1 that ascend, such as 0,0.5,0.9")
        return thresholds


GanAugmentation = Literal["color", "translation", "cutout", "none"]


class GanSettings(Settings):
    """Training of a conditional GAN.

    Defaults from "SNGAN" (Miyato et al., arXiv 1802.05957 and 1802.05637) and "DiffAugment" (Zhao et al., arXiv
    2006.10738: its BigGAN on CIFAR-10, which the paper takes).
    """

    steps: int = setting(30_000, "steps of the generator", "ours", ge=1)
    width: int = setting(64, "channels at 64 px; twice as many at 32 px, four times below", "SNGAN", ge=1, le=512)
    latent_dim: int = setting(128, "length of the latent vector z", "SNGAN", ge=1, le=4096)
    batch_size: int = setting(64, "images in every step", "SNGAN", ge=2)
    discriminator_steps: int = setting(4, "of the discriminator for each of the generator", "DiffAugment", ge=1)
    learning_rate: float = setting(2e-4, "Adam's, of both networks", "SNGAN, DiffAugment", gt=0)
    ema_decay: float = setting(
        0.9999, "of the averaged generator, less at first", "DiffAugment", ge=0, lt=1, option=None
    )
    augmentations: tuple[GanAugmentation, ...] = setting(
        ("color", "translation", "cutout"), "DiffAugment's, of real and generated images", "its small sets"
    )
    seed: int = setting(0, "of weights and of every draw", "ours", ge=0)

    @model_validator(mode="after")
    def _none_is_alone(self) -> GanSettings:
        if "none" in self.augmentations and len(self.augmentations) > 1:
            raise ValueError(f"augmentations={','.join(self.augmentations)}: none stands alone")
        return self


class GanSampleSettings(Settings):
    """Images of latents drawn at random."""

    variants: int = setting(1, "with --run: images for every training image of it", "text", ge=1)
    batch_size: int = setting(100, "images side by side", "ours", ge=1)
    seed: int = setting(0, "of the latents, each by its class and number", "ours", ge=0)


class GanInvertSettings(Settings):
    """GAN inversion (paper, section B.2.1): one latent for every image."""

    steps: int = setting(500, "Adam steps of every start", "ours; text: not said", ge=1)
    starts: int = setting(4, "starts of every image; the one that ends nearest counts", "ours", ge=1)
    learning_rate: float = setting(0.1, "Adam's at first, falling to 0 along a cosine", "ours", gt=0)
    pixel_weight: float = setting(1.0, "lambda_pixel, weight of the distance in pixels", "text", ge=0)
    batch_size: int = setting(25, "images side by side, each with all its starts", "ours", ge=1)
    seed: int = setting(0, "of the starts, each by its image id and number", "ours", ge=0)

    @property
    def variants(self) -> int:
        """Images that are made of each source."""
        return 1
