"""The commands of the method: invert, sample, train, and run and demo, which do all three."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from .command import (
    command,
    command_line,
    data_settings,
    hold,
    integers,
    load,
    notes_on,
    number_or_auto,
    numbers,
    regrouped,
    settings_of,
    words,
)
from .options import (
    AllowNear,
    Architecture,
    Arms,
    Augmentations,
    Balanced,
    Combinations,
    Data,
    DataSeed,
    Device,
    DropDuplicates,
    Dtype,
    Eta,
    GeneratorName,
    GradientCheckpointing,
    Grouping,
    GroupSize,
    Guidance,
    GuidanceInterval,
    Holdout,
    ImageSize,
    InferenceSteps,
    Init,
    Interpolation,
    InterpolationKind,
    InvertBatch,
    InvertRate,
    Join,
    JointBatch,
    JointGroup,
    Json,
    KeepSteps,
    KeptSteps,
    Limit,
    MeAdaEta,
    MeAdaEvery,
    MeAdaGamma,
    MeAdaRate,
    MeAdaShare,
    MeAdaSteps,
    Mixing,
    NoiseStrength,
    OwnSize,
    Partner,
    PerClass,
    Preset,
    RealFraction,
    Recipe,
    Replicates,
    Resolution,
    Restart,
    Revision,
    Root,
    Run,
    RunGroup,
    SafetyCheck,
    SampleBatch,
    SampleResolution,
    Scheduler,
    Seed,
    Seeds,
    Size,
    Steps,
    Strict,
    Test,
    TestLimit,
    Tokens,
    TrainBatch,
    TrainRate,
    TrainSteps,
    Unconditional,
    Variants,
    WarmUp,
)
from .prompts import ClassesOf, GeneratorOrMini, GuidanceOrPrompts, Prompts, SizeOrResolution, sample_prompts
from .summary import summarise


def invert(
    data: Data, out: Annotated[Path, typer.Option(help="Run folder.")], generator: GeneratorName = "mini",
    revision: Revision = None, device: Device = "auto", dtype: Dtype = "auto", preset: Preset = None,
    test: Test = None, size: Size = None, limit: Limit = None, test_limit: TestLimit = None, holdout: Holdout = None,
    data_seed: DataSeed = None, root: Root = None, drop_test_duplicates: DropDuplicates = False,
    allow_near_duplicates: AllowNear = False, balanced: Balanced = False, per_class: PerClass = None,
    steps: Steps = None, keep_steps: KeepSteps = None, init: Init = None, tokens: Tokens = None,
    learning_rate: InvertRate = None, resolution: Resolution = None, batch_size: InvertBatch = None,
    grouping: Grouping = None, group_size: JointGroup = None, joint_batch_size: JointBatch = None,
    gradient_checkpointing: GradientCheckpointing = None, seed: Seed = None, join: Join = False, as_json: Json = False,
) -> None:  # fmt: skip
    """Stage 1: learn one conditioning vector per image of DATA."""
    with command(as_json) as summary:
        from ..config.settings import InvertSettings
        from ..run.coarseness import coarseness
        from ..run.images import open_splits
        from ..run.stages import invert_stage

        source = data_settings(
            data, test, size, limit, test_limit, holdout, data_seed, root, drop_test_duplicates, allow_near_duplicates,
            balanced, per_class,
        )  # fmt: skip
        settings = settings_of(
            InvertSettings, preset, "invert", of=data, steps=steps, keep_steps=integers(keep_steps), init=init,
            tokens=tokens, learning_rate=learning_rate, resolution=resolution, batch_size=batch_size, seed=seed,
            grouping=grouping, group_size=group_size, joint_batch_size=joint_batch_size,
            gradient_checkpointing=gradient_checkpointing,
        )  # fmt: skip
        loaded = load(generator, revision, device, dtype)
        with hold(out, join):
            splits = open_splits(out, source)
            side = settings.resolution or loaded.resolution
            coarseness(out, splits.train, loaded, side, min(splits.train.size, side))
            embeddings = invert_stage(out, splits, loaded, settings)
        first, last = float(embeddings.losses[0].mean()), float(embeddings.losses[-1].mean())
        summary |= {"run": str(out), "images": len(embeddings), "loss_initial": first, "loss_final": last}
        notes = len(splits.train.problems) + len(splits.test.problems)
        summary |= {"notes": notes}
        next_one = f"{len(embeddings)} vectors in {out}, loss {first:.3f} -> {last:.3f}. Next: dinv sample {out}"
        summary["text"] = "\n".join([*notes_on(notes, data, test), next_one])


def sample(
    run: Annotated[Path, typer.Argument(help="Run folder; with --prompts, the folder to write.")],
    generator: GeneratorOrMini = None,
    revision: Revision = None, device: Device = "auto", dtype: Dtype = "auto", preset: Preset = None,
    variants: Variants = None, guidance_scales: GuidanceOrPrompts = None, kept_steps: KeptSteps = None,
    combinations: Combinations = None,
    noise_strength: NoiseStrength = None, interpolation: Interpolation = None, scheduler: Scheduler = None,
    interpolation_kind: InterpolationKind = None, partner: Partner = None, unconditional: Unconditional = None,
    group_size: GroupSize = None, guidance_interval: GuidanceInterval = None, eta: Eta = None,
    resolution: SampleResolution = None, strict: Strict = False,
    inference_steps: InferenceSteps = None, image_size: SizeOrResolution = None, batch_size: SampleBatch = None,
    seed: Seed = None, safety_checker: SafetyCheck = None, prompts: Prompts = None, classes_of: ClassesOf = None,
    restart: Restart = False, join: Join = False, as_json: Json = False,
) -> None:  # fmt: skip
    """Stage 2: draw variants around the learned vectors of RUN. With --prompts: draw from prompts instead."""
    if prompts is not None:
        unused = {
            "--preset": preset, "--kept-steps": kept_steps, "--combinations": combinations,
            "--noise-strength": noise_strength,
            "--interpolation": interpolation, "--interpolation-kind": interpolation_kind, "--partner": partner,
            "--unconditional": unconditional, "--group-size": group_size, "--guidance-interval": guidance_interval,
            "--eta": eta, "--strict": strict or None,
        }  # fmt: skip
        sample_prompts(
            run, prompts, classes_of, (generator or "mini", revision, device, dtype), unused, restart, join, as_json,
            variants=variants, guidance_scales=guidance_scales, scheduler=scheduler, inference_steps=inference_steps,
            resolution=resolution, image_size=image_size, batch_size=batch_size, seed=seed,
            safety_checker=safety_checker,
        )  # fmt: skip
        return
    with command(as_json) as summary:
        from ..config.settings import SampleSettings
        from ..run.images import recorded_data
        from ..run.stages import inverted_with, sample_stage, sources_of
        from ..sample.synthetic import refused_drawings

        if classes_of is not None:
            raise UsageError("--classes-of: goes with --prompts; vectors have their classes.")
        if not run.is_dir():
            raise UsageError(f"{run}: no such run folder. Start with `dinv invert DATA --out {run}`.")
        settings = settings_of(
            SampleSettings, preset, "sample", of=recorded_data(run), variants=variants,
            guidance_scales=numbers(guidance_scales),
            kept_steps=integers(kept_steps), combinations=combinations, noise_strength=noise_strength,
            interpolation=interpolation,
            scheduler=scheduler, inference_steps=inference_steps, image_size=image_size,
            batch_size=batch_size, seed=seed, safety_checker=safety_checker, interpolation_kind=interpolation_kind,
            partner=partner, unconditional=unconditional, group_size=group_size,
            guidance_interval=numbers(guidance_interval), eta=eta,
            resolution=resolution, strict=strict or None,
        )  # fmt: skip
        recorded, its_revision = inverted_with(run) if generator is None else (generator, revision)
        loaded = load(recorded, revision or its_revision, device, dtype)
        with hold(run, join, restart):
            count = sample_stage(run, loaded, settings, anew=restart, sources=sources_of(run))
        summary |= {"run": str(run), "images": count, "folder": str(run / "synthetic")}
        summary |= {"blanked": refused_drawings(run)}
        summary["text"] = f"{count} images in {run / 'synthetic'}. Next: dinv train {run}"


def train(
    run: Run, device: Device = "auto", preset: Preset = None, architecture: Architecture = None,
    recipe: Recipe = None, augmentations: Augmentations = None, mixing: Mixing = None, me_ada_every: MeAdaEvery = None,
    me_ada_share: MeAdaShare = None, me_ada_steps: MeAdaSteps = None, me_ada_rate: MeAdaRate = None,
    me_ada_gamma: MeAdaGamma = None, me_ada_eta: MeAdaEta = None,
    steps: TrainSteps = None, warm_up_steps: WarmUp = None, batch_size: TrainBatch = None,
    learning_rate: TrainRate = None,
    real_fraction: RealFraction = None, arms: Arms = None, seeds: Seeds = None, own_size: OwnSize = True,
    restart: Restart = False, join: Join = False, as_json: Json = False,
) -> None:  # fmt: skip
    """Train a classifier per arm and seed on the images of RUN, test it on real images, and write the report."""
    with command(as_json) as summary:
        from ..config.settings import TrainSettings
        from ..run.images import open_splits, recorded_data
        from ..run.reporting import read_config, report_stage
        from ..run.stages import forewarn, train_stage

        settings = settings_of(
            TrainSettings, preset, "train", of=recorded_data(run), architecture=architecture, steps=steps,
            warm_up_steps=warm_up_steps, batch_size=batch_size,
            learning_rate=learning_rate, real_fraction=number_or_auto(real_fraction), arms=words(arms),
            seeds=integers(seeds),
            recipe=recipe, augmentations=words(augmentations), mixing=mixing, me_ada_every=me_ada_every,
            me_ada_share=me_ada_share, me_ada_steps=me_ada_steps, me_ada_rate=me_ada_rate,
            me_ada_gamma=me_ada_gamma, me_ada_eta=me_ada_eta,
        )  # fmt: skip
        with hold(run, join, restart):
            splits = open_splits(run)
            if used := ((read_config(run, "sample") or {}).get("settings") or {}).get("image_size"):
                forewarn(splits, settings, used, own_size=own_size)
            results = train_stage(run, splits, settings, device, anew=restart, own_size=own_size)
            record = report_stage(run, splits, results, settings, command_line())
        summarise(summary, run, record)


def run(
    data: Data, out: Annotated[Path | None, typer.Option(help="Run folder. [default: runs/<name of DATA>]")] = None,
    generator: GeneratorName = "mini", revision: Revision = None, device: Device = "auto", dtype: Dtype = "auto",
    preset: Preset = None, test: Test = None, size: Size = None, limit: Limit = None,
    test_limit: TestLimit = None, holdout: Holdout = None, data_seed: DataSeed = None, root: Root = None,
    drop_test_duplicates: DropDuplicates = False,
    allow_near_duplicates: AllowNear = False, balanced: Balanced = False, per_class: PerClass = None,
    steps: Steps = None, keep_steps: KeepSteps = None,
    init: Init = None, tokens: Tokens = None, learning_rate: InvertRate = None, resolution: Resolution = None,
    invert_batch_size: InvertBatch = None, grouping: Grouping = None, joint_batch_size: JointBatch = None,
    gradient_checkpointing: GradientCheckpointing = None,
    variants: Variants = None, guidance_scales: Guidance = None,
    kept_steps: KeptSteps = None, combinations: Combinations = None, noise_strength: NoiseStrength = None,
    interpolation: Interpolation = None,
    interpolation_kind: InterpolationKind = None, partner: Partner = None, unconditional: Unconditional = None,
    group_size: RunGroup = None, guidance_interval: GuidanceInterval = None, eta: Eta = None,
    sample_resolution: SampleResolution = None, strict: Strict = False,
    scheduler: Scheduler = None, inference_steps: InferenceSteps = None, image_size: ImageSize = None,
    sample_batch_size: SampleBatch = None, seed: Seed = None, safety_checker: SafetyCheck = None,
    architecture: Architecture = None,
    recipe: Recipe = None, augmentations: Augmentations = None, mixing: Mixing = None, me_ada_every: MeAdaEvery = None,
    me_ada_share: MeAdaShare = None, me_ada_steps: MeAdaSteps = None, me_ada_rate: MeAdaRate = None,
    me_ada_gamma: MeAdaGamma = None, me_ada_eta: MeAdaEta = None,
    train_steps: TrainSteps = None, warm_up_steps: WarmUp = None, train_batch_size: TrainBatch = None,
    train_learning_rate: TrainRate = None,
    real_fraction: RealFraction = None, arms: Arms = None, seeds: Seeds = None, own_size: OwnSize = True,
    replicates: Replicates = 1, join: Join = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """All stages: invert DATA, sample, train, and write run.json and report.html."""
    with command(as_json) as summary:
        from ..config.settings import InvertSettings, SampleSettings, TrainSettings
        from ..run.stages import run_all

        folder = out or Path("runs") / (Path(data.rpartition(":")[2]).stem or "run")
        source = data_settings(
            data, test, size, limit, test_limit, holdout, data_seed, root, drop_test_duplicates, allow_near_duplicates,
            balanced, per_class,
        )  # fmt: skip
        inverting = settings_of(
            InvertSettings, preset, "invert", of=data, steps=steps, keep_steps=integers(keep_steps), init=init,
            tokens=tokens, learning_rate=learning_rate, resolution=resolution, batch_size=invert_batch_size, seed=seed,
            grouping=grouping, joint_batch_size=joint_batch_size, gradient_checkpointing=gradient_checkpointing,
        )  # fmt: skip
        sampling = settings_of(
            SampleSettings, preset, "sample", of=data, variants=variants, guidance_scales=numbers(guidance_scales),
            kept_steps=integers(kept_steps), combinations=combinations, noise_strength=noise_strength,
            interpolation=interpolation,
            scheduler=scheduler, inference_steps=inference_steps, image_size=image_size,
            batch_size=sample_batch_size, seed=seed, interpolation_kind=interpolation_kind, partner=partner,
            unconditional=unconditional, guidance_interval=numbers(guidance_interval), eta=eta,
            resolution=sample_resolution, strict=strict or None, safety_checker=safety_checker,
        )  # fmt: skip
        joint = inverting.grouping == "joint"
        if joint:
            inverting = regrouped(inverting, group_size)
        if sampling.has_groups or not joint:  # a size that neither stage has a use for is refused
            sampling = regrouped(sampling, group_size)
        training = settings_of(
            TrainSettings, preset, "train", of=data, architecture=architecture, steps=train_steps,
            warm_up_steps=warm_up_steps, batch_size=train_batch_size,
            learning_rate=train_learning_rate, real_fraction=number_or_auto(real_fraction), arms=words(arms),
            seeds=integers(seeds),
            recipe=recipe, augmentations=words(augmentations), mixing=mixing, me_ada_every=me_ada_every,
            me_ada_share=me_ada_share, me_ada_steps=me_ada_steps, me_ada_rate=me_ada_rate,
            me_ada_gamma=me_ada_gamma, me_ada_eta=me_ada_eta,
        )  # fmt: skip
        with hold(folder, join):
            record = run_all(
                folder, source, load(generator, revision, device, dtype), invert=inverting, sample=sampling,
                train=training, command=command_line(), replicates=replicates, own_size=own_size,
            )  # fmt: skip
        summarise(summary, folder, record, data, test)


def demo(
    data: Annotated[str, typer.Option(help="elpv (solar cells; needs the extra `demo`) or digits.")] = "elpv",
    out: Annotated[Path | None, typer.Option(help="Run folder. [default: runs/demo-<data>]")] = None,
    as_json: Json = False,
) -> None:
    """The whole job on a small data set in minutes, on a CPU."""
    with command(as_json) as summary:
        from ..config.settings import DEMOS, DataSettings, InvertSettings, SampleSettings, TrainSettings
        from ..run.stages import run_all

        if data not in DEMOS:
            raise UsageError(f"--data {data}: no such demo. Use one of: {', '.join(DEMOS)}.")
        folder, chosen = out or Path("runs") / f"demo-{data}", DEMOS[data]
        with hold(folder):
            record = run_all(
                folder,
                DataSettings.model_validate({"data": data, **chosen["data"]}),
                load("mini", None, "auto", "auto"),
                invert=InvertSettings.model_validate(chosen["invert"]),
                sample=SampleSettings.model_validate(chosen["sample"]),
                train=TrainSettings.model_validate(chosen["train"]),
                command=command_line(),
                own_size=False,  # it takes longer than all else; the summary says that the real images are shrunk
            )
        summarise(summary, folder, record)
