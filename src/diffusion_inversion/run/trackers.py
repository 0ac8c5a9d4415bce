"""Programs that show what a run logs: TensorBoard, Trackio, Weights & Biases; each is imported when it is asked for.

All write to a folder and use no network: Trackio keeps a database there, wandb works offline unless WANDB_MODE says
otherwise.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout, suppress
from glob import escape
from importlib import import_module
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from ..config.planning import TRACKERS
from ..errors import UsageError, how_to_install

PROJECT = "diffusion-inversion"
_LOGS = ("/events.*", ".trackio.json", ".wandb.json")  # what follows the name of a run where it was logged
SETTINGS = "settings/"  # what the tag of a stage's settings begins with


class Tracker(Protocol):
    """What a run tells of itself: numbers and pictures by tag and step, and the settings of its stages, at step 0."""

    def last_steps(self) -> Mapping[str, int]:
        """Tag => the last step that earlier calls of the same run logged."""
        ...

    def scalar(self, tag: str, value: float, step: int) -> None: ...
    def picture(self, tag: str, png: bytes, step: int) -> None: ...
    def settings(self, tag: str, settings: Mapping[str, Any]) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Event files in <folder>/<name>; `tensorboard --logdir <folder>` shows all runs beside each other."""

    def __init__(self, folder: Path, name: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder / name
        self._writer = SummaryWriter(str(self.folder), flush_secs=10)

    def last_steps(self) -> Mapping[str, int]:
        """See `Tracker`; read from the event files themselves, so what a kill lost is logged again."""
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        found = EventAccumulator(str(self.folder), size_guidance={"scalars": 1, "images": 1, "tensors": 1})
        found.Reload()
        tags = found.Tags()
        last = {tag: found.Scalars(tag)[-1].step for tag in tags["scalars"]}
        last |= {tag.removesuffix("/text_summary"): found.Tensors(tag)[-1].step for tag in tags["tensors"]}
        return last | {tag: found.Images(tag)[-1].step for tag in tags["images"]}

    def scalar(self, tag: str, value: float, step: int) -> None:
        self._writer.add_scalar(tag, value, step)
        self._writer.flush()  # before a state of the training is saved, which may lie behind the log but not before it

    def picture(self, tag: str, png: bytes, step: int) -> None:
        import numpy as np
        from PIL import Image

        self._writer.add_image(tag, np.asarray(Image.open(io.BytesIO(png)).convert("RGB")), step, dataformats="HWC")

    def settings(self, tag: str, settings: Mapping[str, Any]) -> None:
        self._writer.add_text(tag, f"```json\n{json.dumps(settings, indent=2)}\n```", 0)

    def close(self) -> None:
        self._writer.close()


class _Logger:
    """A module with wandb's functions: init, log, Image. What was logged is kept beside it, by tag."""

    def __init__(self, module: Any, run: Any, kept: Path, log: Callable[[dict[str, Any], int], None]) -> None:
        self._module, self._run, self._kept, self._log = module, run, kept, log
        self._last: dict[str, int] = json.loads(kept.read_text()) if kept.exists() else {}

    def last_steps(self) -> Mapping[str, int]:
        return dict(self._last)

    def _keep(self, tag: str, value: Any, step: int) -> None:
        self._log({tag: value}, step)
        self._note(tag, step)

    def _note(self, tag: str, step: int) -> None:
        self._last[tag] = step
        partial = self._kept.with_suffix(".partial")
        partial.write_text(json.dumps(self._last))
        partial.replace(self._kept)

    def scalar(self, tag: str, value: float, step: int) -> None:
        self._keep(tag, value, step)

    def picture(self, tag: str, png: bytes, step: int) -> None:
        from PIL import Image

        self._keep(tag, self._module.Image(Image.open(io.BytesIO(png)).convert("RGB")), step)

    def settings(self, tag: str, settings: Mapping[str, Any]) -> None:
        self._run.config.update({tag.removeprefix(SETTINGS): dict(settings)})
        self._note(tag, 0)

    def close(self) -> None:
        with redirect_stdout(sys.stderr):
            self._module.finish()


def _trackio(folder: Path, name: str) -> Tracker:
    os.environ.setdefault("TRACKIO_DIR", str(folder / "trackio"))  # read when it is imported
    with redirect_stdout(sys.stderr):  # stdout is the command's own
        module = import_module("trackio")
        run = module.init(project=PROJECT, name=name, resume="allow", embed=False)
    return _Logger(module, run, folder / f"{name}.trackio.json", lambda values, step: run.log(values, step=step))


def _wandb(folder: Path, name: str) -> Tracker:
    module = import_module("wandb")
    mode, plain = os.environ.get("WANDB_MODE", "offline"), module.Settings(console="off", silent=True)
    run = module.init(
        project=PROJECT, id=name, name=name, dir=str(folder), resume="allow", mode=mode, settings=plain,
        allow_val_change=True,  # settings of a stage that began anew
    )  # fmt: skip
    run.define_metric("*", step_metric="step")  # wandb's own steps may not go back, as those of a second classifier do
    return _Logger(module, run, folder / f"{name}.wandb.json", lambda values, step: run.log({**values, "step": step}))


_OPEN: dict[str, Callable[[Path, str], Tracker]] = {"tensorboard": TensorBoard, "trackio": _trackio, "wandb": _wandb}


def require_trackers(names: tuple[str, ...]) -> None:
    """Raise UsageError for a program that is not installed, with the extra that installs it."""
    if missing := [name for name in names if find_spec(name) is None]:
        extras = ",".join(missing)
        raise UsageError(f"--log-to {extras}: not installed; {how_to_install(extras)}")


def name_of_log(folder: Path, run: str, own: str, *, begun: bool) -> str:
    """The name below a folder of the log whose id is `own`: that of the run, or `<run>-2` where another run has it.

    A log without an id, of an earlier version, is taken for that of a run that was `begun`. Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        name = run if number == 1 else f"{run}-{number}"
        kept = folder / f"{name}.run"
        if not begun and not kept.exists() and any(any(folder.glob(escape(name) + end)) for end in _LOGS):
            continue
        with suppress(FileExistsError), kept.open("x") as file:  # also where two runs begin at once
            file.write(own)
        if kept.read_bytes() == own.encode():
            return name
    raise AssertionError  # there is always another number


def open_tracker(name: str, folder: Path, run: str) -> Tracker:
    """Begin, or go on with, what a program keeps of a run below a folder. Raises what the program does."""
    folder.mkdir(parents=True, exist_ok=True)
    return _OPEN[name](folder, run)


assert set(_OPEN) == set(TRACKERS)
