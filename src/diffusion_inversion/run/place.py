"""Where a run is written: its default name, and folders that are no place for it."""

from __future__ import annotations

from pathlib import Path

from ..data.hub_names import PREFIX, read_hub_name
from ..data.sources import is_run
from ..errors import UsageError
from .layout import STORES, identify

# Names of folders and files that say which part of a data set they hold, not which data set.
_PARTS = ("train", "training", "test", "testing", "val", "valid", "validation", "images", "imgs", "data")
_SHOWN = 3


def default_folder(data: str) -> Path:
    """`runs/<name>` for a DATA: its last part, or the one above where that is as general as `train`."""
    path = Path(read_hub_name(data).name if data.startswith(PREFIX) else data.rpartition(":")[2])
    names = [path.stem, *(one.name for one in path.absolute().parents)]
    return Path("runs") / next((name for name in names if name and name.lower() not in _PARTS), "run")


def require_place(run: Path, *data: str | None) -> None:
    """Raise UsageError for a run folder that lies inside a folder of images, or holds files and no run.

    data: DATA and test images, as settings name them.
    """
    place = run.resolve()
    for one in data:
        if (
            one is not None
            and Path(one).is_dir()
            and not is_run(Path(one))
            and place.is_relative_to(Path(one).resolve())
        ):
            raise UsageError(
                f"--out {run}: lies inside the images of {one}, which would be read with what is written there. "
                "Choose a folder outside."
            )
    if foreign := foreign_files(run):
        raise UsageError(
            f"--out {run}: holds files of others ({foreign}) and no run. Choose another folder, or an empty one."
        )


def foreign_files(folder: Path) -> str:
    """The first names in a folder that holds files and no run; empty for every other one."""
    found = sorted(path.name for path in folder.glob("[!.]*")) if folder.is_dir() else []
    ours = {store.folder for store in STORES}
    if any(name in ours or identify(name) is not None for name in found):
        return ""
    return ", ".join([*found[:_SHOWN], *(["..."] if len(found) > _SHOWN else [])])
