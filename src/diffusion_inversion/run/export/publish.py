"""Publish the synthetic images of a run: a folder with parquet, card and picture, and its way to the hub."""

from __future__ import annotations

import io
from pathlib import Path

from ...config.commands import PushSettings
from ...engine.ledger import Ledger
from ...engine.progress import track
from ...errors import DinvError, UsageError
from ..images import read_record
from ..layout import RUN_FILE
from ..methods import RETRIEVAL, method_of
from . import parquet
from .card import GRID, card
from .images import SyntheticImages
from .stage import new_folder, require_empty, require_room_for

_ROWS, _COLUMNS = 10, 8  # classes and images of each that the picture shows
_SIDE = 96  # px of an image in it, at least


def write_publication(run: Path, settings: PushSettings) -> int:
    """Make the folder `settings.out` that is uploaded; return how many images it holds.

    Raises UsageError (a folder that holds something, images that are not finished or were found in a pool), DataError,
    DiskError.
    """
    require_empty(settings.out)
    if method_of(run).name == RETRIEVAL:
        raise UsageError(f"{run}: images of a pool are photographs of others; publish them by their own licences.")
    images, recorded = SyntheticImages.of(run, settings.source_ids), read_record(run)
    require_room_for(images, settings.out)
    name = "images drawn from prompts" if recorded is None else recorded["name"]
    source_licence = "" if recorded is None else recorded["licence"]
    licence = settings.licence or ("other" if source_licence else "unknown")
    text = card(images, Ledger(run).read_json(RUN_FILE), name, source_licence, licence)
    with new_folder(settings.out) as folder:
        with track("export", len(images)) as advance:
            parquet.write(images, folder, advance)
        (folder / GRID).write_bytes(grid(images))
        (folder / "README.md").write_text(text, encoding="utf-8")
    return len(images)


def grid(images: SyntheticImages) -> bytes:
    """PNG with a row for each class, of which there are at most 10, and 8 of its images, evenly spaced by name."""
    from PIL import Image

    labels = images.table["label"].to_pylist()
    places: dict[int, tuple[int, int]] = {}  # row of the table => row and column of the picture
    for row, label in enumerate(sorted(set(labels))[:_ROWS]):
        own = [place for place, one in enumerate(labels) if one == label]
        shown = [own[len(own) * step // _COLUMNS] for step in range(_COLUMNS)] if len(own) > _COLUMNS else own
        places |= {place: (row, column) for column, place in enumerate(shown)}
    opened = {place: Image.open(io.BytesIO(one.png)) for place, one in enumerate(images) if place in places}
    side = max(_SIDE, *(image.width for image in opened.values()))
    picture = Image.new("RGB", (_COLUMNS * side, (1 + max(row for row, _ in places.values())) * side), "white")
    for place, image in opened.items():
        row, column = places[place]
        picture.paste(image.resize((side, side), Image.Resampling.NEAREST), (column * side, row * side))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def upload(settings: PushSettings, endpoint: str | None = None) -> str:
    """Upload the folder as a data set of the hub, in one commit; return its address.

    endpoint: the hub's address, by default the one that huggingface_hub knows, with the account that is logged in.

    Raises UsageError where there is such a data set and `settings.update` is off, or the account may not write it;
    DinvError where the hub cannot be reached or refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(endpoint=endpoint)
    files = sorted(path for path in settings.out.rglob("*") if path.is_file())
    operations = [CommitOperationAdd(path.relative_to(settings.out).as_posix(), path) for path in files]
    try:
        made = api.create_repo(
            settings.hub_id, repo_type="dataset", private=not settings.public, exist_ok=settings.update
        )
        api.create_commit(settings.hub_id, operations, commit_message="Synthetic images", repo_type="dataset")
    except Exception as error:  # of the hub, of whichever HTTP client it uses, of the network
        raise _refused(settings, error) from error
    return str(made)


def _refused(settings: PushSettings, error: Exception) -> DinvError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    kept = f"{settings.out} is whole: `hf upload {settings.hub_id} {settings.out} --repo-type dataset` uploads it later"
    if status == 409 and not settings.update:
        return UsageError(f"{settings.hub_id}: exists already; give another name, or --update. {kept}.")
    if status in (401, 403):
        return UsageError(f"{settings.hub_id}: not allowed ({status}); log in with `hf auth login`. {kept}.")
    cause = " ".join(str(error).split()) or type(error).__name__
    return DinvError(f"{settings.hub_id}: the hub cannot be written ({cause}). {kept}.")
