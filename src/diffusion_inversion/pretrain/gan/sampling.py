"""Images of latents drawn at random, in the store that stage 2 writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...config.commands import GanSampleSettings
from ...config.settings import Settings
from ...engine.frozen_settings import freeze_settings
from ...engine.lock import run_lock
from ...engine.manifest import timed
from ...errors import UsageError
from ...invert.embeddings import FOLDER as EMBEDDINGS
from ...randomness import generator_for
from ...run.forget import follow
from ...run.images import adopt_record, read_record
from ...run.methods import GAN
from ...run.stages import make_way
from ...sample.columns import EARLIER
from ...sample.drawing import draw_missing
from ...sample.synthetic import SCHEMA, Row, SyntheticStore
from .weights import Gan


@dataclass(frozen=True)
class _Latent:
    source_id: str
    class_name: str
    variant: int


def sample_for_run(gan: Gan, run: Path, out: Path, settings: GanSampleSettings, *, anew: bool = False) -> int:
    """Draw `settings.variants` images for every training image of `run`, of its class; return how many there are.

    `out` has the run's DATA from then on, so `dinv train` takes it. Raises UsageError (no run, a class that the GAN
    does not know), DataError (the GAN was trained on a test image of the run), and what `sample_gan` raises.
    """
    record = read_record(run)
    if record is None:
        raise UsageError(f"{run}: not a run folder (it has no data.json). Give --per-class N for images without one.")
    names = tuple(record["class_names"])
    gan.labels_of(names, str(run))
    gan.refuse_tested(record["test"]["ids"], record["test"]["hashes"])
    check_folder(out)
    with run_lock(out):
        adopt_record(run, out)
        follow(run, out)
        counts = Counter(record["train"]["labels"])
        return sample_gan(gan, {name: counts[label] for label, name in enumerate(names)}, out, settings, anew=anew)


def sample_gan(
    gan: Gan, counts: Mapping[str, int], out: Path, settings: GanSampleSettings, *, anew: bool = False
) -> int:
    """Draw `settings.variants` images of as many latents of each class as `counts` says; return how many there are.

    `anew` deletes first what is there, once there is room. The k-th latent of a class depends on (seed, class, k,
    variant) alone, so more of them may be asked for later. Classes have the numbers of their place in `counts`.

    Raises UsageError (a class that the GAN does not know, a run of vectors), ConfigMismatchError (`out` was made
    otherwise), LockedError, DiskError.
    """
    numbers = gan.labels_of(counts, str(out))
    check_folder(out)
    make_way({out: sum(counts.values()) * settings.variants}, gan.size, anew=anew)
    store = SyntheticStore(out, tuple(counts))
    with run_lock(out), timed(store.manifest):
        described = made_from(gan, GAN, settings, tuple(counts))
        freeze_settings(out, "sample", described, begun=bool(store.manifest.units()))
        label_of = {name: label for label, name in enumerate(counts)}
        class_of = {f"{name}: latent {k}": name for name, count in counts.items() for k in range(count)}

        def draw(items: list[_Latent]) -> Tensor:
            streams = (generator_for(settings.seed, "gan", item.source_id, item.variant) for item in items)
            latents = torch.stack([torch.randn(gan.latent_dim, generator=stream) for stream in streams])
            labels = torch.tensor([numbers[item.class_name] for item in items])
            with torch.no_grad():
                return gan.images(latents, labels).cpu()

        draw_missing(
            store,
            class_of,
            settings,
            gan.size,
            None,
            plan=lambda source_id, variant, _: _Latent(source_id, class_of[source_id], variant),
            draw=draw,
            describe=lambda item: metadata_row(
                gan, GAN, settings.seed, item.source_id, label_of[item.class_name], variant=item.variant
            ),
        )
    return len(class_of) * settings.variants


def check_folder(out: Path) -> None:
    """Raise UsageError where the folder is a run of vectors."""
    if (out / EMBEDDINGS).exists():
        raise UsageError(f"{out}: a run of learned vectors. Give images of a GAN a folder of their own.")


def made_from(
    gan: Gan, kind: str, settings: Settings, class_names: tuple[str, ...], **others: dict[str, str]
) -> dict[str, Any]:
    """Everything the images depend on but their sources, which their rows name, as JSON data."""
    return {
        "schema": SCHEMA,
        "kind": kind,
        "settings": settings.described({"variants"}) | {"image_size": gan.size},
        "class_names": list(class_names),
        "generator": {"name": gan.name, "hash": gan.hash},
        **others,
    }


def metadata_row(
    gan: Gan, method: str, seed: int, source_id: str, label: int, *, variant: int = 0, version: str = "", steps: int = 0
) -> Row:
    """How one image was made; see `columns.COLUMNS`. `steps`: of the inversion; `version`: of the source."""
    return {
        **EARLIER,
        "source_id": source_id,
        "variant": variant,
        "label": label,
        "partner_label": label,
        "partner_id": source_id,
        "interpolation": 0.0,
        "noise_strength": 0.0,
        "guidance_scale": 1.0,
        "inversion_step": steps,
        "scheduler": "none",
        "inference_steps": 0,
        "seed": seed,
        "generator": gan.name,
        "generator_hash": gan.hash,
        "source_version": version,
        "partner_version": version,
        "unconditional": "empty",
        "resolution": gan.size,
        "method": method,
        "licence": gan.licence,
    }
