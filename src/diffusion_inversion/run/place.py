"""Where a run is written: its default name, and folders that are no place for it."""

from __future__ import annotations

from pathlib import Path

from ..data.hub_names import PREFIX, read_hub_name
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
        if one is not None and Path(one).is_dir() and place.is_relative_to(Path(one).resolve()):
            raise UsageError(
                f"--out {run}: lies inside the images of {one}, which would be read with what is written there. "
                "Choose a folder outside."
            )
    found = sorted(path.name for path in run.glob("[!.]*")) if run.is_dir() else []
    ours = {store.folder for store in STORES}
    foreign = [name for name in found if name not in ours and identify(name) is None]
    if foreign and foreign == found:
        more = ", ..." if len(foreign) > _SHOWN else ""
        raise UsageError(
            f"--out {run}: holds files of others ({', '.join(foreign[:_SHOWN])}{more}) and no run. "
            "Choose another folder, or an empty one."
        )
