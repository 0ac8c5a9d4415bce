"""The options that several commands share: one name and one help text for each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[str, typer.Argument(help="Folder of class folders, parquet file, hf:<id>, or a built-in name.")]
Run = Annotated[Path, typer.Argument(help="Run folder.", exists=True, file_okay=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one machine-readable summary on stdout.")]
GeneratorName = Annotated[str, typer.Option("--generator", help="mini, a diffusers folder, or a hub id.")]
Revision = Annotated[str | None, typer.Option(help="Revision of a hub id.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16: arithmetic of the UNet.")]
Preset = Annotated[
    str | None,
    typer.Option(
        help="paper (its text), reference (what its code does), fast (the defaults), or a TOML file with tables "
        "invert, sample, train. Options win over it."
    ),
]
Test = Annotated[
    str | None, typer.Option(help="Test images, as DATA. [default: the data set's own, else 20 % held out]")
]
Size = Annotated[int | None, typer.Option(help="Side in px to load at. [default: the data set's own, at most 512]")]
Limit = Annotated[int | None, typer.Option(help="Use a subset of the training images, classes in their proportions.")]
Balanced = Annotated[bool, typer.Option("--balanced", help="--limit takes as many of every class, as far as they go.")]
PerClass = Annotated[int | None, typer.Option(help="Use at most so many training images of each class.")]
TestLimit = Annotated[int | None, typer.Option(help="Use a subset of the test images, classes in their proportions.")]
Holdout = Annotated[float | None, typer.Option(help="Share to hold out where there is no test split. [default: 0.2]")]
DataSeed = Annotated[int | None, typer.Option(help="Seed of subset and hold-out. [default: 0]")]
Root = Annotated[str | None, typer.Option(help="Where downloaded data sets are kept. [default: $DINV_DATA]")]
DropDuplicates = Annotated[bool, typer.Option(help="Leave out test images that are training images too.")]
Steps = Annotated[int | None, typer.Option(help="AdamW steps per image. [default: 50]")]
KeepSteps = Annotated[str | None, typer.Option(help="Steps whose vectors are kept too, e.g. 1000,2000,3000.")]
Init = Annotated[str | None, typer.Option(help="warm, class-mean or random. [default: warm]")]
Tokens = Annotated[int | None, typer.Option(help="Tokens per vector. [default: 5]")]
InvertRate = Annotated[float | None, typer.Option("--invert-learning-rate", help="Of stage 1. [default: 0.03]")]
Resolution = Annotated[int | None, typer.Option(help="Side in px to learn at. [default: the generator's]")]
Grouping = Annotated[str | None, typer.Option(help="independent, or joint as the code. [default: independent]")]
JointGroup = Annotated[int | None, typer.Option(help="Joint: images per group. [default: 100]")]
JointBatch = Annotated[
    int | None, typer.Option("--joint-batch-size", help="Joint: images with a loss at each step. [default: 50]")
]
GradientCheckpointing = Annotated[
    bool | None, typer.Option("--gradient-checkpointing", help="Stage 1 in less memory, slower, with the same numbers.")
]
InvertBatch = Annotated[int | None, typer.Option("--invert-batch-size", help="Images side by side. [default: 100]")]
Variants = Annotated[int | None, typer.Option(help="Images per learned vector. [default: 10]")]
Guidance = Annotated[
    str | None, typer.Option("--guidance-scales", help="To mix, e.g. 1.5,2,3; 1 = off, paper's w + 1. [default: 1]")
]
KeptSteps = Annotated[str | None, typer.Option(help="Stage-1 steps to mix. [default: the last one]")]
Combinations = Annotated[
    str | None,
    typer.Option(help="Of kept steps and guidance scales: random, or grid, all of them in turn. [default: random]"),
]
NoiseStrength = Annotated[float | None, typer.Option(help="lambda, Gaussian noise on the vector. [default: 0.1]")]
Interpolation = Annotated[float | None, typer.Option(help="alpha, weight of a partner. [default: 0.1]")]
InterpolationKind = Annotated[str | None, typer.Option(help="lerp or slerp. [default: lerp]")]
Partner = Annotated[
    str | None, typer.Option(help="same-class, nearest, other-class (soft label) or reference. [default: same-class]")
]
Unconditional = Annotated[
    str | None,
    typer.Option(help="Guide away from: mean, class-mean, group-mean, empty (prompt) or zero. [default: mean]"),
]
GroupSize = Annotated[int | None, typer.Option(help="Group of group-mean and partner reference. [default: 100]")]
RunGroup = Annotated[
    int | None,
    typer.Option("--group-size", help="Group of grouping joint, of group-mean and partner reference. [default: 100]"),
]
GuidanceInterval = Annotated[
    str | None, typer.Option(help="Guide where t / T lies in it, e.g. 0.2,0.8; 1 = pure noise. [default: 0,1]")
]
Scheduler = Annotated[str | None, typer.Option(help="ddim, pndm, dpm++, unipc or euler. [default: dpm++]")]
Eta = Annotated[float | None, typer.Option(help="Share of DDPM's noise that ddim adds, 0 to 1. [default: 0]")]
SampleResolution = Annotated[
    int | None,
    typer.Option(
        "--sample-resolution", help="Side in px to draw at. [default: the one learned at, or the generator's]"
    ),
]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse another resolution than the vectors were learned at.")]
InferenceSteps = Annotated[int | None, typer.Option(help="Denoising steps. [default: 16]")]
ImageSize = Annotated[int | None, typer.Option(help="Side of the images in px. [default: the data set's own]")]
SampleBatch = Annotated[int | None, typer.Option("--sample-batch-size", help="Images side by side. [default: 100]")]
Seed = Annotated[int | None, typer.Option(help="Run seed of stages 1 and 2. [default: 0]")]
SafetyCheck = Annotated[
    bool | None,
    typer.Option(
        "--safety-checker/--no-safety-checker",
        help="Draw again what the checkpoint's safety checker, where it has one, would blank. [default: on]",
    ),
]
Architecture = Annotated[
    str | None,
    typer.Option(
        help="resnet20, resnet56, resnet18, vgg16, mobilenetv2, shufflenetv2, efficientnetb0, timm:<name>, or auto: "
        "resnet20 on a CPU, resnet18 on a GPU. [default: auto]"
    ),
]
Recipe = Annotated[str | None, typer.Option(help="paper-sgd, medmnist-adamw or fast. [default: paper-sgd]")]
Augmentations = Annotated[
    str | None,
    typer.Option(
        help="Some of default,autoaugment,randaugment,augmix,cutout,mixup,cutmix; or none. [default: default]"
    ),
]
Mixing = Annotated[str | None, typer.Option(help="real+synthetic: batch, concatenate or sequential. [default: batch]")]
MeAdaEvery = Annotated[int | None, typer.Option(help="ME-ADA: steps between two rounds, 0 = off. [default: 0]")]
MeAdaShare = Annotated[float | None, typer.Option(help="Share of the images that each round copies. [default: 0.1]")]
MeAdaSteps = Annotated[int | None, typer.Option(help="Ascent steps on each copy. [default: 15]")]
MeAdaRate = Annotated[float | None, typer.Option(help="Ascent step size. [default: 0.04]")]
MeAdaGamma = Annotated[float | None, typer.Option(help="Weight of the distance. [default: 1]")]
MeAdaEta = Annotated[float | None, typer.Option(help="Weight of the entropy. [default: 1]")]
TrainSteps = Annotated[int | None, typer.Option("--train-steps", help="Optimizer steps of every arm. [default: 1000]")]
WarmUp = Annotated[
    int | None, typer.Option("--warm-up-steps", help="Steps in which a cosine recipe's rate rises first. [default: 0]")
]
TrainBatch = Annotated[int | None, typer.Option("--train-batch-size", help="Images per step. [default: the recipe's]")]
TrainRate = Annotated[
    float | None, typer.Option("--train-learning-rate", help="Peak of the schedule. [default: the recipe's]")
]
RealFraction = Annotated[
    str | None,
    typer.Option(help="Real share of real+synthetic batches; auto: chosen on training images. [default: 0.5]"),
]
Arms = Annotated[str | None, typer.Option(help="[default: real,synthetic,real+synthetic]")]
Restart = Annotated[bool, typer.Option(help="Delete what this stage and later ones made here, and begin anew.")]
Seeds = Annotated[str | None, typer.Option(help="Seeds of the classifiers. [default: 0,1,2,3,4]")]
AllowNear = Annotated[
    bool, typer.Option("--allow-near-duplicates", help="Accept test images that nearly equal training images.")
]
Replicates = Annotated[
    int,
    typer.Option(
        min=1,
        help="Repeat all of it, each time with its own subset, hold-out, vectors, images and classifiers: the verdict "
        "then counts what those would change. [default: 1]",
        show_default=False,
    ),
]
OwnSize = Annotated[
    bool,
    typer.Option(
        "--own-size/--no-own-size",
        help="Train on the real images at their own side too, up to 96 px, where all else is smaller: what synthetic "
        "images then have to beat. [default: on]",
        show_default=False,
    ),
]
Join = Annotated[
    bool, typer.Option("--join", help="Share the work with other processes that were started with --join on this run.")
]
