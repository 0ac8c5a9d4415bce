"""The command `dinv`: thin commands over the stages. Heavy imports wait until a command runs."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from .errors import DinvError, UsageError

if TYPE_CHECKING:
    from .config import DataSettings, Settings
    from .generator import Generator
    from .report import RunRecord

app = typer.Typer(
    help="Turn a folder of labelled images into a synthetic training set, and find out whether it helps.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
INTERRUPTED = 130
Model = TypeVar("Model", bound="Settings")

Data = Annotated[str, typer.Argument(help="Folder of class folders, parquet file, hf:<id>, or a built-in name.")]
Run = Annotated[Path, typer.Argument(help="Run folder.", exists=True, file_okay=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one machine-readable summary on stdout.")]
GeneratorName = Annotated[str, typer.Option("--generator", help="mini, a diffusers folder, or a hub id.")]
Revision = Annotated[str | None, typer.Option(help="Revision of a hub id.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16: arithmetic of the UNet.")]
Preset = Annotated[
    str, typer.Option(help="default, or paper (3,000 steps, 45 variants, DDIM with 100 steps, ResNet18).")
]
Test = Annotated[
    str | None, typer.Option(help="Test images, as DATA. [default: the data set's own, else 20 % held out]")
]
Size = Annotated[int | None, typer.Option(help="Side in px to load at. [default: the data set's own, at most 512]")]
Limit = Annotated[int | None, typer.Option(help="Use a stratified subset of the training images.")]
TestLimit = Annotated[int | None, typer.Option(help="Use a stratified subset of the test images.")]
Holdout = Annotated[float | None, typer.Option(help="Share to hold out where there is no test split. [default: 0.2]")]
DataSeed = Annotated[int | None, typer.Option(help="Seed of subset and hold-out. [default: 0]")]
Root = Annotated[str | None, typer.Option(help="Where downloaded data sets are kept. [default: $DINV_DATA]")]
DropDuplicates = Annotated[bool, typer.Option(help="Leave out test images that are training images too.")]
Steps = Annotated[int | None, typer.Option(help="AdamW steps per image. [default: 100]")]
KeepSteps = Annotated[str | None, typer.Option(help="Steps whose vectors are kept too, e.g. 1000,2000,3000.")]
Init = Annotated[str | None, typer.Option(help="warm, class-mean or random. [default: warm]")]
Tokens = Annotated[int | None, typer.Option(help="Tokens per vector. [default: 5]")]
InvertRate = Annotated[float | None, typer.Option("--invert-learning-rate", help="Of stage 1. [default: 0.03]")]
Resolution = Annotated[int | None, typer.Option(help="Side in px to learn at. [default: the generator's]")]
InvertBatch = Annotated[int | None, typer.Option("--invert-batch-size", help="Images side by side. [default: 100]")]
Variants = Annotated[int | None, typer.Option(help="Images per learned vector. [default: 10]")]
Guidance = Annotated[
    str | None, typer.Option("--guidance-scales", help="To mix, e.g. 1.5,2,3; 1 = off, paper's w + 1. [default: 1]")
]
KeptSteps = Annotated[str | None, typer.Option(help="Stage-1 steps to mix. [default: the last one]")]
NoiseStrength = Annotated[float | None, typer.Option(help="lambda, Gaussian noise on the vector. [default: 0.1]")]
Interpolation = Annotated[float | None, typer.Option(help="alpha, weight of a same-class partner. [default: 0.1]")]
Scheduler = Annotated[str | None, typer.Option(help="ddim or dpm++. [default: dpm++]")]
InferenceSteps = Annotated[int | None, typer.Option(help="Denoising steps. [default: 16]")]
ImageSize = Annotated[int | None, typer.Option(help="Side of the images in px. [default: the data set's own]")]
SampleBatch = Annotated[int | None, typer.Option("--sample-batch-size", help="Images side by side. [default: 100]")]
Seed = Annotated[int | None, typer.Option(help="Run seed of stages 1 and 2. [default: 0]")]
Architecture = Annotated[str | None, typer.Option(help="auto, resnet20 or resnet18. [default: auto]")]
TrainSteps = Annotated[int | None, typer.Option("--train-steps", help="Optimizer steps of every arm. [default: 1000]")]
TrainBatch = Annotated[int | None, typer.Option("--train-batch-size", help="Images per step. [default: 128]")]
TrainRate = Annotated[float | None, typer.Option("--train-learning-rate", help="Peak of the cosine. [default: 0.1]")]
RealFraction = Annotated[float | None, typer.Option(help="Real share of real+synthetic batches. [default: 0.5]")]
Arms = Annotated[str | None, typer.Option(help="[default: real,synthetic,real+synthetic]")]
Restart = Annotated[bool, typer.Option(help="Delete what this stage and later ones made here, and begin anew.")]
Seeds = Annotated[str | None, typer.Option(help="Seeds of the classifiers. [default: 0,1,2]")]


@app.command()
def invert(
    data: Data, out: Annotated[Path, typer.Option(help="Run folder.")], generator: GeneratorName = "mini",
    revision: Revision = None, device: Device = "auto", dtype: Dtype = "auto", preset: Preset = "default",
    test: Test = None, size: Size = None, limit: Limit = None, test_limit: TestLimit = None, holdout: Holdout = None,
    data_seed: DataSeed = None, root: Root = None, drop_test_duplicates: DropDuplicates = False,
    steps: Steps = None, keep_steps: KeepSteps = None, init: Init = None, tokens: Tokens = None,
    learning_rate: InvertRate = None, resolution: Resolution = None, batch_size: InvertBatch = None,
    seed: Seed = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Stage 1: learn one conditioning vector per image of DATA."""
    with _command(as_json) as summary:
        from .config import InvertSettings
        from .engine.lock import run_lock
        from .pipeline import invert_stage, open_splits

        source = _data_settings(data, test, size, limit, test_limit, holdout, data_seed, root, drop_test_duplicates)
        settings = _settings(
            InvertSettings, preset, "invert", steps=steps, keep_steps=_integers(keep_steps), init=init, tokens=tokens,
            learning_rate=learning_rate, resolution=resolution, batch_size=batch_size, seed=seed,
        )  # fmt: skip
        loaded = _load(generator, revision, device, dtype)
        with run_lock(out):
            embeddings = invert_stage(out, open_splits(out, source), loaded, settings)
        first, last = float(embeddings.losses[0].mean()), float(embeddings.losses[-1].mean())
        summary |= {"run": str(out), "images": len(embeddings), "loss_initial": first, "loss_final": last}
        summary["text"] = f"{len(embeddings)} vectors in {out}, loss {first:.3f} -> {last:.3f}. Next: dinv sample {out}"


@app.command()
def sample(
    run: Run, generator: Annotated[str | None, typer.Option(help="[default: the one it was inverted with]")] = None,
    revision: Revision = None, device: Device = "auto", dtype: Dtype = "auto", preset: Preset = "default",
    variants: Variants = None, guidance_scales: Guidance = None, kept_steps: KeptSteps = None,
    noise_strength: NoiseStrength = None, interpolation: Interpolation = None, scheduler: Scheduler = None,
    inference_steps: InferenceSteps = None, image_size: ImageSize = None, batch_size: SampleBatch = None,
    seed: Seed = None, restart: Restart = False, as_json: Json = False,
) -> None:  # fmt: skip
    """Stage 2: draw variants around the learned vectors of RUN."""
    with _command(as_json) as summary:
        from .config import SampleSettings
        from .engine.lock import run_lock
        from .pipeline import inverted_with, sample_stage
        from .pipeline import restart as restart_stage

        settings = _settings(
            SampleSettings, preset, "sample", variants=variants, guidance_scales=_numbers(guidance_scales),
            kept_steps=_integers(kept_steps), noise_strength=noise_strength, interpolation=interpolation,
            scheduler=scheduler, inference_steps=inference_steps, image_size=image_size,
            batch_size=batch_size, seed=seed,
        )  # fmt: skip
        recorded, its_revision = inverted_with(run) if generator is None else (generator, revision)
        loaded = _load(recorded, revision or its_revision, device, dtype)
        with run_lock(run):
            if restart:
                restart_stage(run, "sample")
            count = sample_stage(run, loaded, settings)
        summary |= {"run": str(run), "images": count, "folder": str(run / "synthetic")}
        summary["text"] = f"{count} images in {run / 'synthetic'}. Next: dinv train {run}"


@app.command()
def train(
    run: Run, device: Device = "auto", preset: Preset = "default", architecture: Architecture = None,
    steps: TrainSteps = None, batch_size: TrainBatch = None, learning_rate: TrainRate = None,
    real_fraction: RealFraction = None, arms: Arms = None, seeds: Seeds = None, restart: Restart = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Train a classifier per arm and seed on the images of RUN, test it on real images, and write the report."""
    with _command(as_json) as summary:
        from .config import TrainSettings
        from .engine.lock import run_lock
        from .pipeline import open_splits, report_stage, train_stage
        from .pipeline import restart as restart_stage

        settings = _settings(
            TrainSettings, preset, "train", architecture=architecture, steps=steps, batch_size=batch_size,
            learning_rate=learning_rate, real_fraction=real_fraction, arms=_words(arms), seeds=_integers(seeds),
        )  # fmt: skip
        with run_lock(run):
            if restart:
                restart_stage(run, "train")
            splits = open_splits(run)
            results = train_stage(run, splits, settings, device)
            record = report_stage(run, splits, results, settings, _command_line())
        _summarise(summary, run, record)


@app.command()
def run(
    data: Data, out: Annotated[Path | None, typer.Option(help="Run folder. [default: runs/<name of DATA>]")] = None,
    generator: GeneratorName = "mini", revision: Revision = None, device: Device = "auto", dtype: Dtype = "auto",
    preset: Preset = "default", test: Test = None, size: Size = None, limit: Limit = None,
    test_limit: TestLimit = None, holdout: Holdout = None, data_seed: DataSeed = None, root: Root = None,
    drop_test_duplicates: DropDuplicates = False, steps: Steps = None, keep_steps: KeepSteps = None,
    init: Init = None, tokens: Tokens = None, learning_rate: InvertRate = None, resolution: Resolution = None,
    invert_batch_size: InvertBatch = None, variants: Variants = None, guidance_scales: Guidance = None,
    kept_steps: KeptSteps = None, noise_strength: NoiseStrength = None, interpolation: Interpolation = None,
    scheduler: Scheduler = None, inference_steps: InferenceSteps = None, image_size: ImageSize = None,
    sample_batch_size: SampleBatch = None, seed: Seed = None, architecture: Architecture = None,
    train_steps: TrainSteps = None, train_batch_size: TrainBatch = None, train_learning_rate: TrainRate = None,
    real_fraction: RealFraction = None, arms: Arms = None, seeds: Seeds = None, as_json: Json = False,
) -> None:  # fmt: skip
    """All stages: invert DATA, sample, train, and write run.json and report.html."""
    with _command(as_json) as summary:
        from .config import InvertSettings, SampleSettings, TrainSettings
        from .engine.lock import run_lock
        from .pipeline import run_all

        folder = out or Path("runs") / (Path(data.rpartition(":")[2]).stem or "run")
        source = _data_settings(data, test, size, limit, test_limit, holdout, data_seed, root, drop_test_duplicates)
        inverting = _settings(
            InvertSettings, preset, "invert", steps=steps, keep_steps=_integers(keep_steps), init=init, tokens=tokens,
            learning_rate=learning_rate, resolution=resolution, batch_size=invert_batch_size, seed=seed,
        )  # fmt: skip
        sampling = _settings(
            SampleSettings, preset, "sample", variants=variants, guidance_scales=_numbers(guidance_scales),
            kept_steps=_integers(kept_steps), noise_strength=noise_strength, interpolation=interpolation,
            scheduler=scheduler, inference_steps=inference_steps, image_size=image_size,
            batch_size=sample_batch_size, seed=seed,
        )  # fmt: skip
        training = _settings(
            TrainSettings, preset, "train", architecture=architecture, steps=train_steps, batch_size=train_batch_size,
            learning_rate=train_learning_rate, real_fraction=real_fraction, arms=_words(arms), seeds=_integers(seeds),
        )  # fmt: skip
        with run_lock(folder):
            record = run_all(
                folder, source, _load(generator, revision, device, dtype), invert=inverting, sample=sampling,
                train=training, command=_command_line(),
            )  # fmt: skip
        _summarise(summary, folder, record)


@app.command()
def demo(
    data: Annotated[str, typer.Option(help="elpv (solar cells; needs the extra `demo`) or digits.")] = "elpv",
    out: Annotated[Path | None, typer.Option(help="Run folder. [default: runs/demo-<data>]")] = None,
    as_json: Json = False,
) -> None:
    """The whole job on a small data set in minutes, on a CPU."""
    with _command(as_json) as summary:
        from .config import DEMOS, DataSettings, InvertSettings, SampleSettings, TrainSettings
        from .engine.lock import run_lock
        from .pipeline import run_all

        if data not in DEMOS:
            raise UsageError(f"--data {data}: no such demo. Use one of: {', '.join(DEMOS)}.")
        folder, chosen = out or Path("runs") / f"demo-{data}", DEMOS[data]
        with run_lock(folder):
            record = run_all(
                folder,
                DataSettings.model_validate({"data": data, **chosen["data"]}),
                _load("mini", None, "auto", "auto"),
                invert=InvertSettings.model_validate(chosen["invert"]),
                sample=SampleSettings.model_validate(chosen["sample"]),
                train=TrainSettings.model_validate(chosen["train"]),
                command=_command_line(),
            )
        _summarise(summary, folder, record)


@app.command()
def generators(
    name: Annotated[str | None, typer.Argument(help="Show one of them.")] = None,
    path: Annotated[bool, typer.Option("--path", help="Print its folder alone.")] = False,
    as_json: Json = False,
) -> None:
    """List the generators that can be loaded here: the embedded one and those in the Hugging Face cache."""
    with _command(as_json) as summary:
        from .checkpoints import available

        found = available()
        if name is not None:
            if name not in found:
                raise UsageError(
                    f"{name}: not found here. Known: {', '.join(found)}. A hub id is fetched when it is used."
                )
            found = {name: found[name]}
        summary["generators"] = {key: str(value) for key, value in found.items()}
        lines = [str(value) if path else f"{key}\t{value}" for key, value in found.items()]
        summary["text"] = "\n".join(lines)


@app.command()
def pretrain(
    corpus: Annotated[Path, typer.Option(help="Parquet file with image (32 px) and label to train on.")],
    validation: Annotated[Path, typer.Option(help="The same for validation.")],
    out: Annotated[Path, typer.Option(help="Folder for states, caches, logs and the result.")] = Path("pretraining"),
    stage: Annotated[str, typer.Option(help="Some of vae,latents,unet,export,figures.")] = "vae,latents,unet,export",
    vae_samples: Annotated[int, typer.Option(help="Images the autoencoder sees.")] = 77_000,
    unet_samples: Annotated[int, typer.Option(help="Images the denoiser sees.")] = 450_000,
    target_train: Annotated[Path | None, typer.Option(help="For stage figures: a target data set, train.")] = None,
    target_test: Annotated[Path | None, typer.Option(help="For stage figures: a target data set, test.")] = None,
    start_from: Annotated[str | None, typer.Option(help="mini or a folder made here: go on from its weights.")] = None,
    as_json: Json = False,
) -> None:
    """Make the embedded generator `mini` again, or go on with it."""
    with _command(as_json) as summary:
        from .engine.lock import run_lock
        from .pretrain.recipe import pretrain as recipe

        with run_lock(out):
            folder = recipe(
                corpus, validation, out, stages=_words(stage) or (), vae_samples=vae_samples, unet_samples=unet_samples,
                target_train=target_train, target_test=target_test, start_from=start_from,
            )  # fmt: skip
        summary |= {"folder": str(folder), "text": str(folder)}


def main() -> None:
    """Entry point of `dinv`."""
    app()


@contextmanager
def _command(as_json: bool) -> Iterator[dict[str, Any]]:
    """Run a command: print its summary, turn expected errors and interrupts into messages and exit codes."""
    signal.signal(signal.SIGTERM, _interrupt)
    summary: dict[str, Any] = {}
    try:
        yield summary
    except DinvError as error:
        typer.echo(f"error: {error}", err=True)
        if as_json:
            typer.echo(json.dumps({"ok": False, "exit_code": error.exit_code, "error": str(error)}))
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt as error:
        typer.echo(f"interrupted; what was committed is kept. Go on with: {_command_line()}", err=True)
        if as_json:
            typer.echo(json.dumps({"ok": False, "exit_code": INTERRUPTED, "error": "interrupted"}))
        raise typer.Exit(INTERRUPTED) from error
    text = summary.pop("text")
    typer.echo(json.dumps({"ok": True, **summary}) if as_json else text)


def _absolute(data: str | None) -> str | None:
    """An existing path made absolute, so that a run goes on from any folder; other names as they are."""
    from .sources import BUILTINS

    return str(Path(data).resolve()) if data is not None and data not in BUILTINS and Path(data).exists() else data


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _command_line() -> str:
    return shlex.join(["dinv", *sys.argv[1:]])


def _load(name: str, revision: str | None, device: str, dtype: str) -> Generator:
    from .generator import Generator

    return Generator.load(name, revision, device, dtype)


def _settings(model: type[Model], preset: str, stage: str, **given: Any) -> Model:
    """The preset's settings of a stage, overridden by the options that were given."""
    from pydantic import ValidationError

    from .config import PRESETS

    if preset not in PRESETS:
        raise UsageError(f"--preset {preset}: unknown. Use one of: {', '.join(PRESETS)}.")
    values = {**PRESETS[preset][stage], **{key: value for key, value in given.items() if value is not None}}
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc'])) or stage}={e['input']!r}: {e['msg']}" for e in error.errors()]
        raise UsageError("settings that cannot be used:\n" + "\n".join(f"  {line}" for line in problems)) from error


def _data_settings(
    data: str, test: str | None, size: int | None, limit: int | None, test_limit: int | None, holdout: float | None,
    seed: int | None, root: str | None, drop_test_duplicates: bool,
) -> DataSettings:  # fmt: skip
    from .config import DataSettings

    return _settings(
        DataSettings, "default", "data", data=_absolute(data), test=_absolute(test), size=size, limit=limit,
        test_limit=test_limit,        holdout=holdout, seed=seed, root=root, drop_test_duplicates=drop_test_duplicates,
    )  # fmt: skip


def _words(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(word.strip() for word in text.split(",") if word.strip())


def _integers(text: str | None) -> tuple[int, ...] | None:
    try:
        return None if text is None else tuple(int(word) for word in _words(text) or ())
    except ValueError as error:
        raise UsageError(f"{text!r}: not a comma-separated list of whole numbers, such as 0,1,2.") from error


def _numbers(text: str | None) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(float(word) for word in _words(text) or ())
    except ValueError as error:
        raise UsageError(f"{text!r}: not a comma-separated list of numbers, such as 1.5,2,3.") from error


def _summarise(summary: dict[str, Any], folder: Path, record: RunRecord) -> None:
    """Fill the summary of a finished run."""
    verdict, report = record["verdict"], folder / "report.html"
    rows = []
    for arm, result in record["arms"].items():
        spread = "" if result["std"] is None else f" ± {100 * result['std']:.1f}"
        rows.append(f"{arm:>15}  {100 * result['mean']:.1f}{spread} % (n={result['n']})")
    summary |= {"run": str(folder), "report": str(report), "arms": record["arms"], "verdict": verdict}
    summary["text"] = "\n".join([*rows, f"verdict: {verdict['outcome']} ({verdict['sentence']})", f"report: {report}"])
