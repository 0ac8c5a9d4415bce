"""Stages of a small run that can be killed anywhere, and what the run holds in the end."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "helpers"))

import no_sync  # noqa: F401
from contents import assert_same, content, lost_and_doubled, units  # noqa: F401 (tests have them from here)
from toy import MINI_SCHEDULER, build_checkpoint, toy_images

from diffusion_inversion.config.commands import AuditSettings
from diffusion_inversion.config.fidelity import FilterSettings
from diffusion_inversion.config.growing import GrowSettings
from diffusion_inversion.config.sampling import RetrieveSettings, SampleSettings
from diffusion_inversion.config.settings import DataSettings, InvertSettings
from diffusion_inversion.config.training import TrainSettings
from diffusion_inversion.config.tuning import read_tuning
from diffusion_inversion.data.images import LabelledImages
from diffusion_inversion.engine import faults
from diffusion_inversion.engine.lock import run_lock
from diffusion_inversion.errors import DinvError
from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.run import retrieval
from diffusion_inversion.run import stages as pipeline
from diffusion_inversion.run.grow import grow
from diffusion_inversion.run.images import open_splits
from diffusion_inversion.sample import packed
from diffusion_inversion.sweep import read_plan, run_sweep

HERE = (str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent / "helpers"))
packed.BATCHES = 2  # in a Parquet file: the 24 images are four
INVERT = InvertSettings(steps=2, init="random", batch_size=2, eval_draws=1)
SAMPLE = SampleSettings(variants=2, inference_steps=2, batch_size=3, guidance_scales=(1.0, 2.0))
TRAIN = TrainSettings(architecture="resnet20", steps=2, batch_size=4, seeds=(0, 1))
ONLINE = TRAIN.model_copy(update={"steps": 12, "mixing": "queue", "arms": ("real+synthetic", "real"), "online": 3})
GROW = TRAIN.model_copy(update={"arms": ("real+synthetic",)})


def write_images(folder: Path, images: LabelledImages, rows: range) -> None:
    """Write rows of images as `<folder>/<class>/<row>.png`."""
    from PIL import Image

    for row in rows:
        path = folder / images.class_names[int(images.labels[row])] / f"{row:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images.images[row].permute(1, 2, 0).numpy()).save(path)


@dataclass(frozen=True)
class Bench:
    """A toy checkpoint and a folder of images, of which 8 are to test."""

    checkpoint: Path
    data: Path

    @classmethod
    def build(cls, folder: Path, to_learn: int = 12) -> Bench:
        images = toy_images(to_learn + 8)
        write_images(folder / "data" / "train", images, range(to_learn))
        write_images(folder / "data" / "test", images, range(to_learn, to_learn + 8))
        return cls(build_checkpoint(folder / "toy", MINI_SCHEDULER), folder / "data")

    def generator(self) -> Generator:
        return _generator(self.checkpoint)


@cache
def _generator(checkpoint: Path) -> Generator:
    return Generator.load(checkpoint, device="cpu", dtype="float32")


def invert(bench: Bench, run: Path) -> None:
    splits = open_splits(run, DataSettings(data=str(bench.data)))
    pipeline.invert_stage(run, splits, bench.generator(), INVERT)


def sample(bench: Bench, run: Path, settings: SampleSettings = SAMPLE) -> None:
    pipeline.sample_stage(run, bench.generator(), settings, sources=open_splits(run).train)


def train(bench: Bench, run: Path) -> None:
    pipeline.train_stage(run, open_splits(run), TRAIN, "cpu")


def report(bench: Bench, run: Path) -> None:
    splits = open_splits(run)
    results = pipeline.train_stage(run, splits, TRAIN, "cpu")
    pipeline.report_stage(run, splits, results, TRAIN, "dinv run data")


STAGES: dict[str, Callable[..., None]] = {"invert": invert, "sample": sample, "train": train, "report": report}
REPLICATES = 3


def replicates(bench: Bench, run: Path, count: int = REPLICATES) -> None:
    """The whole job with replicates: 6 of the 12 training images each."""
    pipeline.run_all(
        run, DataSettings(data=str(bench.data), limit=6), bench.generator(), invert=INVERT, sample=SAMPLE, train=TRAIN,
        command="dinv run data", replicates=count,
    )  # fmt: skip


def retrieve(bench: Bench, run: Path) -> None:
    """The 3 nearest of a pool beside the data, in many units; `run` is the folder that holds the set."""
    retrieval.UNIT = 4
    root = bench.data.parent / "root"
    found = RetrieveSettings(pool=str(bench.data.parent / "pool"), k=(3,), block_size=5)
    retrieval.retrieve_sets(run, DataSettings(data=str(bench.data), root=str(root)), found, device="cpu")


def tuned(bench: Bench, run: Path) -> None:
    """The whole job with settings of two stages chosen first."""
    pipeline.run_all(
        run, DataSettings(data=str(bench.data)), bench.generator(), invert=INVERT, sample=SAMPLE, train=TRAIN,
        command="dinv run data", tuning=read_tuning(["interpolation=0.1,0.4,0.9", "real_fraction=0.5,0.75"]),
    )  # fmt: skip


def redrawn(bench: Bench, run: Path) -> None:
    """The whole job, variants that show another class drawn again before training; it takes 24 images to learn."""
    pipeline.run_all(
        run, DataSettings(data=str(bench.data)), bench.generator(), invert=INVERT, sample=SAMPLE, train=TRAIN,
        command="dinv run data", filtering=FilterSettings(filter="redraw"),
    )  # fmt: skip


def uncopied(bench: Bench, run: Path) -> None:
    """Training and report of a run after stage 2; what copies a training image is drawn again first."""
    splits, copies = open_splits(run), AuditSettings(planted=0)
    results = pipeline.train_stage(run, splits, TRAIN, "cpu", copies=copies, generator=bench.generator())
    pipeline.report_stage(run, splits, results, TRAIN, "dinv run data")


def auto_noise(bench: Bench, run: Path) -> None:
    """Stages 1 and 2, each image with the noise that it bears; it takes 24 images to learn."""
    invert(bench, run)
    settings = SAMPLE.model_copy(update={"noise_strength": "auto", "batch_size": 40})
    pipeline.sample_stage(run, bench.generator(), settings, sources=open_splits(run).train)


def online(bench: Bench, run: Path) -> None:
    """Training, with images that are drawn while it goes on."""
    pipeline.train_stage(run, open_splits(run), ONLINE, "cpu", generator=bench.generator())


def grown(bench: Bench, run: Path) -> None:
    """9 images more in two rounds, once stage 2 is done."""
    grow(run, open_splits(run), GrowSettings(images=9, round_images=6), GROW, bench.generator(), "cpu")


def swept(bench: Bench, out: Path) -> None:
    """A sweep of runs.toml, which lies beside its folder."""
    run_sweep(read_plan(out.parent / "runs.toml"), out, bench.generator(), command="dinv sweep runs.toml")


JOBS = STAGES | {
    "replicates": replicates, "retrieve": retrieve, "tuned": tuned, "redrawn": redrawn, "uncopied": uncopied,
    "auto_noise": auto_noise, "online": online, "grown": grown, "swept": swept,
    "packed": partial(sample, settings=SAMPLE.model_copy(update={"storage": "parquet"})),
}  # fmt: skip


@dataclass(frozen=True)
class Kill:
    """When a process is killed: at the nth time that it passes a fault point, or after some seconds of work."""

    point: str | None = None
    nth: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.point} #{self.nth}" if self.point else f"{self.seconds:.3f} s"


def forkserver() -> Any:
    """Processes that are forked from one in which everything is imported and nothing computed."""
    # Before Python 3.13 a fork server does not get sys.path, and passes over modules that it cannot import.
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in (*HERE, *sys.path) if path)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["warm"])
    return context


def _victim(bench: Bench, run: Path, stage: str, kill: Kill, begun: Any) -> None:
    """The process that is killed. It dies by SIGKILL, which nothing can catch or clean up after."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (the process ends soon)
    bench.generator()
    left = kill.nth

    def on_point(name: str) -> None:
        nonlocal left
        if name == kill.point:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    faults.on_point = on_point
    begun.set()
    with run_lock(run):
        JOBS[stage](bench, run)


def kill_during(bench: Bench, run: Path, stage: str, kill: Kill) -> bool:
    """Do a stage in another process and kill that; return whether it was killed before it was done."""
    context = forkserver()
    begun = context.Event()
    process = context.Process(target=_victim, args=(bench, run, stage, kill, begun))
    process.start()
    if kill.point is None and begun.wait(60):
        time.sleep(kill.seconds)
        process.kill()
    process.join(120)
    code = process.exitcode
    process.close()
    assert code in (0, -signal.SIGKILL), f"{stage} ended with {code} at {kill}"
    return code != 0


def command_child(arguments: list[str], log: str, changes: dict[str, float]) -> None:
    """Run `dinv` with arguments in this process, stdout and stderr in a file; leave with its exit code."""
    from diffusion_inversion.cli import main
    from diffusion_inversion.engine import signals, state

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the test run itself may ignore some (nohup, &)
        signal.signal(number, signal.SIG_DFL)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    sys.argv = ["dinv", *arguments]
    signals.GRACE = changes.get("grace", signals.GRACE)
    state.EVERY = changes.get("every", state.EVERY)
    main()


def _racer(
    bench: Bench, run: Path, stage: str, shared: bool, kill: tuple[str, int] | None, ready: Any, go: Any
) -> None:
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (the process ends soon)
    bench.generator()
    left = kill[1] if kill else 0

    def on_point(name: str) -> None:
        nonlocal left
        if kill and name == kill[0]:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    faults.on_point = on_point
    ready.release()
    go.wait()
    try:
        with run_lock(run, shared=shared):
            JOBS[stage](bench, run)
    except DinvError as error:
        sys.exit(error.exit_code)


def race(
    bench: Bench,
    run: Path,
    stage: str,
    count: int,
    *,
    shared: bool,
    kill_one_at: tuple[str, int] | None = None,
) -> list[int | None]:
    """Start `count` processes on one stage at the same moment; return their exit codes."""
    context = forkserver()
    ready, go = context.Semaphore(0), context.Event()
    processes = [
        context.Process(
            target=_racer, args=(bench, run, stage, shared, kill_one_at if number == 0 else None, ready, go)
        )
        for number in range(count)
    ]
    for process in processes:
        process.start()
    for _ in processes:
        ready.acquire()
    go.set()
    for process in processes:
        process.join(300)
    return [process.exitcode for process in processes]


def _limited(bench: Bench, run: Path, stage: str, limit: int | None, spare: int | None) -> None:
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (the process ends soon)
    bench.generator()
    if spare is not None:
        pipeline.SPARE_BYTES = spare
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        with run_lock(run):
            JOBS[stage](bench, run)
    except DinvError as error:
        sys.exit(error.exit_code)


def limited(bench: Bench, run: Path, stage: str, limit: int | None, spare: int | None = None) -> int | None:
    """Do a stage in a process whose files may have at most `limit` bytes; return its exit code."""
    process = forkserver().Process(target=_limited, args=(bench, run, stage, limit, spare))
    process.start()
    process.join(300)
    return process.exitcode


def finish(bench: Bench, run: Path, stage: str) -> None:
    """The same call again, in this process."""
    with run_lock(run):
        JOBS[stage](bench, run)


def uninterrupted(bench: Bench, run: Path, stage: str) -> tuple[float, dict[str, int]]:
    """Do a stage here; return its seconds and how often it passes each fault point."""
    passed: dict[str, int] = dict.fromkeys(faults.POINTS, 0)

    def on_point(name: str) -> None:
        passed[name] += 1

    faults.on_point = on_point  # type: ignore[assignment]
    start = time.monotonic()
    try:
        finish(bench, run, stage)
    finally:
        faults.on_point = None
    return time.monotonic() - start, passed


torch.set_num_threads(1)  # a process that is forked after OpenMP began would hang
