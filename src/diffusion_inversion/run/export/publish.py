"""Publish the synthetic images of a run: a folder with parquet, card and picture, and its way to the hub."""

from __future__ import annotations

import shlex
from fnmatch import fnmatchcase
from pathlib import Path

from ...config.commands import PushSettings
from ...errors import DinvError, UsageError
from ..methods import ADOPTED, RETRIEVAL, method_of
from .describe import origin_of
from .parquet import PATTERN
from .stage import Exported, require_empty, signer_of, write_images


def write_publication(run: Path, settings: PushSettings) -> Exported:
    """Make the folder `settings.out` that is uploaded.

    Raises UsageError (a folder that holds something, images that are not finished, were found in a pool or
    adopted, a licence
    that those of the sources exclude), DataError, DiskError.
    """
    require_empty(settings.out, run)
    if method_of(run).name == RETRIEVAL:
        raise UsageError(f"{run}: images of a pool are photographs of others; publish them by their own licences.")
    if method_of(run).name == ADOPTED:
        raise UsageError(f"{run}: adopted images are of another program; publish them from there.")
    origin = origin_of(run, settings.licence, settings.source_ids)
    if refused := [one.line for one in origin.findings if one.contradicts]:
        raise UsageError("\n".join(refused))
    address = f"https://huggingface.co/datasets/{settings.hub_id}"
    return write_images(run, "parquet", settings.out, origin, signer_of(run, settings), address=address)


def upload(settings: PushSettings, endpoint: str | None = None) -> str:
    """Upload the folder as a data set of the hub, in one commit; return its address.

    Parquet files of an upload before are deleted there by the same commit.

    endpoint: the hub's address, by default the one that huggingface_hub knows, with the account that is logged in.

    Raises UsageError where there is such a data set and `settings.update` is off, or it is public where
    `settings.public` is not or the other way round, or the account may not write it; DinvError where the hub cannot be
    reached or refuses.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(endpoint=endpoint)
    files = {path.relative_to(settings.out).as_posix(): path for path in settings.out.rglob("*") if path.is_file()}
    operations: list[CommitOperationAdd | CommitOperationDelete] = []
    operations += [CommitOperationAdd(name, files[name]) for name in sorted(files)]
    try:
        made = api.create_repo(
            settings.hub_id, repo_type="dataset", private=not settings.public, exist_ok=settings.update
        )
        if settings.update:
            there = api.dataset_info(settings.hub_id)
            _require_visibility(settings, bool(there.private))
            names = [one.rfilename for one in there.siblings or ()]
            stale = [name for name in names if fnmatchcase(name, PATTERN) and name not in files]
            operations += [CommitOperationDelete(name) for name in stale]
        api.create_commit(settings.hub_id, operations, commit_message="Synthetic images", repo_type="dataset")
    except UsageError:
        raise
    except Exception as error:  # of the hub, of whichever HTTP client it uses, of the network
        raise _refused(settings, error) from error
    return str(made)


def _require_visibility(settings: PushSettings, private: bool) -> None:
    if private != settings.public:
        return
    found, asked = ("private", "leave --public out") if private else ("public", "give --public")
    raise UsageError(
        f"{settings.hub_id}: is {found} already, which --update does not change; change it in its settings on the hub, "
        f"or {asked}. {settings.out} is whole."
    )


def _refused(settings: PushSettings, error: Exception) -> DinvError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 409 and not settings.update:
        whole = f"{settings.out} is whole"
        return UsageError(f"{settings.hub_id}: exists already; give another name, or --update. {whole}.")
    private = "" if settings.public else " --private"  # which it would not be by itself
    stale = f" . --delete {shlex.quote(PATTERN)}" if settings.update else ""
    upload = f"hf upload {settings.hub_id} {shlex.quote(str(settings.out))}{stale} --repo-type dataset{private}"
    kept = f"{settings.out} is whole: `{upload}` uploads it later"
    if status in (401, 403):
        return UsageError(f"{settings.hub_id}: not allowed ({status}); log in with `hf auth login`. {kept}.")
    cause = " ".join(str(error).split()) or type(error).__name__
    return DinvError(f"{settings.hub_id}: the hub cannot be written ({cause}). {kept}.")
