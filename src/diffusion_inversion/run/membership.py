"""How well the images that a run was made from are told from held-out ones, by whoever has what the run made."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ..config.commands import MembershipSettings
from ..config.sampling import SampleSettings
from ..config.settings import InvertSettings
from ..data.datasets import Splits
from ..data.images import LabelledImages, resize, to_model_range
from ..engine.ledger import Ledger
from ..engine.lock import briefly, run_lock
from ..engine.progress import track
from ..engine.store import commit_bytes
from ..errors import DataError, UsageError
from ..generator.device import resolve_device
from ..generator.generator import Generator
from ..invert.embeddings import Embeddings, read_embeddings
from ..invert.inversion import guesses
from ..invert.objective import EvaluationBank, encode
from ..measure.copies.auditing import shown_in
from ..measure.copies.nearest import blocks, described
from ..measure.copies.views import View, part_view, pixel_view
from ..measure.membership import FEWEST, calibrated, log_odds, told
from ..randomness import generator_for
from ..sample.sampling import check, reconstruct
from ..train.store import ClassifierStore
from .copies import made_from, require_own_out
from .drawn_with import generator_of
from .fidelity.copies import recorded_copies
from .fidelity.stage import recorded_filter, trained_on
from .images import open_splits, read_record
from .layout import MEMBERSHIP_FILE
from .methods import INVERSION, method_of
from .replicates import replicate_folders
from .report.record import MembershipRecord
from .trained import Trained, arms_trained, trained

MOST_REFERENCES = 500  # held-out images that distances are calibrated by
MOST_VECTORS = 2000  # that an image is looked for among: those of the images that are tried, and others
_LEAST = 1e-3  # of a distance whose logarithm is taken
_KNOWN = 2000  # images whose descriptions are in memory at a time
_AT_ONCE = 50  # images whose starting vectors, latents or denoising losses are computed at a time
_DRAWN_WITH = SampleSettings(variants=1, guidance_scales=(1.0,), inference_steps=8, safety_checker=False)


@dataclass(frozen=True)
class Tried:
    """Images of which it is asked whether the run knows them."""

    images: LabelledImages  # members first
    members: Tensor  # bool (M,)
    references: Tensor  # uint8 (R, 3, S, S): images of the same kind that an adversary has
    near_duplicates: int  # held-out images that were left out: they show a training image, or a reference


def membership_run(run: Path, settings: MembershipSettings, splits: Splits | None = None) -> dict[str, Any]:
    """Measure what a run gives away of its training images, and keep it; what is there already is not done again.

    Returns the record. Raises UsageError where a stage is not finished or `settings.out` is a run folder or has
    another's file of that name, DataError where there are too few images.
    """
    if settings.out is not None:
        require_own_out(settings.out, MEMBERSHIP_FILE)
    splits = splits or open_splits(run)
    with briefly(run, "membership"):
        ledger, asked = Ledger(run), settings.model_dump(mode="json", exclude={"out", "device"})
        record = read_membership(run, splits)
        if record is None or record["settings"] != asked:
            made_of = _made_from(run, splits)
            record = {**_measured(run, settings, splits), "settings": asked, "made_from": made_of}
            note = {"settings": {**asked, "device": settings.device}}
            ledger.commit(MEMBERSHIP_FILE, _text(record), note=note)
    if settings.out is not None:
        commit_bytes(settings.out / MEMBERSHIP_FILE, _text(record))
    return record


def membership_again(run: Path, splits: Splits) -> None:
    """Measure a run again that was measured, where the file was lost since or speaks of what was made anew."""
    asked = Ledger(run).note(MEMBERSHIP_FILE)
    if asked is not None and read_membership(run, splits) is None:
        membership_run(run, MembershipSettings(**asked["settings"]), splits)


def read_membership(run: Path, splits: Splits) -> dict[str, Any] | None:
    """What was measured of what is there now; None for nothing. Raises DataError for a damaged file."""
    record: dict[str, Any] | None = Ledger(run).read_json(MEMBERSHIP_FILE)
    return None if record is None or record["made_from"] != _made_from(run, splits) else record


def shown(record: dict[str, Any]) -> MembershipRecord:
    """What run.json has of it."""
    names = MembershipRecord.__annotations__
    return cast("MembershipRecord", {name: value for name, value in record.items() if name in names})


def _text(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, indent=1, allow_nan=False) + "\n").encode()


def _made_from(run: Path, splits: Splits) -> dict[str, Any]:
    units = ClassifierStore(run).manifest.units().values()
    classifiers = sorted(digest for unit in units for digest in unit["files"].values())
    vectors = read_embeddings(run).digest if method_of(run) == INVERSION else ""
    found = {**made_from(run, splits), "vectors": vectors, "classifiers": classifiers}
    how, copies = recorded_filter(run).filter, recorded_copies(run) is not None
    return {**found, "in_place": [how, copies]} if how != "off" or copies else found


def _measured(run: Path, settings: MembershipSettings, splits: Splits) -> dict[str, Any]:
    method = method_of(run)
    arms = arms_trained(run) if "classifier" in settings.held else {}
    embeddings = read_embeddings(run) if method == INVERSION else None
    if embeddings is None and settings.held == ("vectors",):
        raise UsageError(f"{run}: its images were made without vectors. Ask --of synthetic, classifier or both.")
    made = trained_on(run, splits.train.class_names, lambda: splits, settings.device).synthetic
    side = min(made.size, splits.train.size)
    tried = tried_images(run, splits, None if embeddings is None else embeddings.ids, side, settings)
    others = [folder for folder in replicate_folders(run)[1:] if _finished(folder)]
    knowing = {arm: [run, *(folder for folder in others if arm in arms_trained(folder))] for arm in arms}
    # Before what takes long, so that a damaged classifier is found before it.
    odds = {arm: [_odds(trained(folder, arm), tried.images) for folder in folders] for arm, folders in knowing.items()}
    device = resolve_device(settings.device)
    search = _Search([pixel_view(device), part_view(device)], tried.images.resized(side).images)
    known = [_known(folder, tried.images.ids) for folder in others]
    apart = search.nearness(tried.references)[None]
    found: list[dict[str, Any]] = []

    def add(of: str, by: str, scores: Tensor, calibration: str) -> None:
        kept = scores.isfinite()
        result = told(scores[kept & tried.members], scores[kept & ~tried.members], settings.false_positives)
        found.append({"of": of, "by": by, "calibrated_by": calibration, **result.record()})

    def add_calibrated(
        of: str, by: str, scores: Tensor, references: Sequence[Tensor], otherwise: Tensor | None
    ) -> None:
        """Calibrated by the replicates that do not know an image, where enough images have such a one."""
        if references:
            unknown = [torch.where(knows, torch.nan, one) for knows, one in zip(known, references, strict=True)]
            less = calibrated(scores, torch.stack(unknown), ~tried.members)
            enough = [int((less.isfinite() & side).sum()) >= FEWEST for side in (tried.members, ~tried.members)]
            if all(enough):
                return add(of, by, less, f"{len(unknown)} other replicates")
        if otherwise is not None:
            return add(of, by, calibrated(scores, otherwise, ~tried.members), "held-out images")
        add(of, by, scores, "nothing")

    add("nothing of the run", "distance to held-out images", apart[0], "nothing")
    if "vectors" in settings.held:
        if embeddings is None:
            print(f"note: {run}: made without vectors; these are not measured", file=sys.stderr, flush=True)
        else:
            generator = generator_of(run, settings.device)
            by_loss, drawn = _of_vectors(embeddings, generator, tried, search, side, settings)
            add("vectors", "denoising loss with the nearest vectors", by_loss, "the loss without them")
            add("vectors", "distance to what they draw", drawn - apart[0], "held-out images")
    if "synthetic" in settings.held:
        nearness = search.nearness(made.resized(side).images)
        theirs = [search.nearness(_images_of(one, made.class_names, settings).resized(side).images) for one in others]
        add_calibrated(f"{method.images} images", "distance to the nearest", nearness, theirs, apart)
    for arm in arms:
        own, *theirs = odds[arm]
        add_calibrated(f"classifier {arm}", "loss", own, theirs if len(theirs) == len(others) else [], None)
    return {
        "members": int(tried.members.sum()),
        "held_out": int((~tried.members).sum()),
        "references": len(tried.references),
        "near_duplicates_left_out": tried.near_duplicates,
        "false_positives": settings.false_positives,
        "figures": found[1:],
        "control": found[0],
        "notes": _notes(found[0], settings, embeddings),
    }


def _notes(control: dict[str, Any], settings: MembershipSettings, embeddings: Embeddings | None) -> list[str]:
    """What the figures do not say."""
    found = [
        "A figure near chance does not prove that nothing is given away: stronger attacks exist, and single images can "
        "stand out where the mean of all does not. This is no statement of differential privacy."
    ]
    if not control["auc_low"] <= 0.5 <= control["auc_high"]:
        found.append(
            "Training and held-out images can be told apart without the run (nothing of the run: AUC "
            f"{control['auc']:.2f}), so the other figures are not of membership alone."
        )
    if control["false_positives"] > settings.false_positives:
        found.append(
            f"{control['others']} held-out images cannot hold a rate of {100 * settings.false_positives:g} %, but one "
            f"of {100 * control['false_positives']:.2g} %."
        )
    if "vectors" in settings.held and embeddings is not None and len(embeddings) > MOST_VECTORS:
        found.append(f"Vectors: looked for among {MOST_VECTORS:,} of {len(embeddings):,}.")
    return found


def tried_images(
    run: Path, splits: Splits, learned: Sequence[str] | None, side: int, settings: MembershipSettings
) -> Tried:
    """Members, and of the test images half as references and at most as many others, all at random.

    No group is parted between references and others. Test images that show a training image too are left out, of the
    others those that show a reference. Raises DataError where too few are left.
    """
    wanted = None if learned is None else {*learned}
    own = [row for row, image_id in enumerate(splits.train.ids) if wanted is None or image_id in wanted]
    doubles = shown_in(splits.test, splits.train) if len(splits.test) else set()
    apart = [row for row in range(len(splits.test)) if row not in doubles]
    if len(own) < FEWEST:
        raise DataError(
            f"{run}: {len(own)} training images; at least {FEWEST} are needed to say how well they are told"
        )
    if len(apart) < 2 * FEWEST:
        raise DataError(
            f"{run}: {len(apart)} held-out images that show no training image; at least {2 * FEWEST} are needed, half "
            "of them to calibrate by. Give more with --test, or a larger --holdout"
        )
    stream = generator_for(settings.seed, "membership")
    chosen = [own[place] for place in torch.randperm(len(own), generator=stream)[: settings.limit].tolist()]
    order = [apart[place] for place in torch.randperm(len(apart), generator=stream).tolist()]
    half, rest = _parted(order, splits.test.groups)
    references = splits.test.subset(sorted(half[:MOST_REFERENCES]))
    seen_there = {rest[place] for place in shown_in(splits.test.subset(rest), references)} if half and rest else set()
    rest = [row for row in rest if row not in seen_there]
    if min(len(references), len(rest)) < FEWEST:
        raise DataError(
            f"{run}: {len(references)} held-out images to calibrate by, and {len(rest)} others that are of other "
            f"groups and show none of them; at least {FEWEST} of either are needed. Give more with --test, or a larger "
            "--holdout"
        )
    rest = rest[: settings.limit]
    members, others = splits.train.subset(sorted(chosen)), splits.test.subset(sorted(rest))
    called = "test: " if splits.how == "given" else ""  # both may hold a cat/001.png
    images = LabelledImages(
        name=members.name,
        ids=members.ids + tuple(f"{called}{image_id}" for image_id in others.ids),
        hashes=members.hashes + others.hashes,
        labels=torch.cat([members.labels, others.labels]),
        class_names=members.class_names,
        images=torch.cat([members.images, others.images]),
        native_size=members.native_size,
    )
    told_apart = torch.arange(len(images)) < len(members)
    return Tried(images, told_apart, references.resized(side).images, len(doubles) + len(seen_there))


def _parted(order: Sequence[int], groups: Sequence[str]) -> tuple[list[int], list[int]]:
    """Rows in two parts, by whole groups: as many of the first groups as half of the rows hold, and the others."""
    together: dict[int | str, list[int]] = {}
    for row in order:
        together.setdefault(groups[row] if groups else row, []).append(row)
    first: list[int] = []
    second: list[int] = []
    for rows in together.values():
        (first if len(first) + len(rows) <= len(order) // 2 else second).extend(rows)
    return first, second


class _Search:
    """How near images (M, 3, S, S) uint8 are to sets of others, in each view of the audit."""

    def __init__(self, views: Sequence[View], images: Tensor) -> None:
        self.views, self.images = views, images

    def nearest(self, known: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Of each view rows (M,) of the nearest known image, uint8 (N, 3, S, S), and minus the log of its distance."""
        found, parts = [], known.split(_KNOWN)
        with track("compare", len(self.views) * len(parts) * len(self.images), "images") as advance:
            for view in self.views:
                best, row = torch.full((len(self.images),), torch.inf), torch.zeros(len(self.images), dtype=torch.int64)
                for number, part in enumerate(parts):
                    for places, block in blocks(view, described(view, part), self.images, advance):
                        distances, rows = block.min(dim=1)
                        nearer = distances < best[places]
                        best[places[nearer]], row[places[nearer]] = distances[nearer], number * _KNOWN + rows[nearer]
                found.append((row, -best.double().clamp_min(_LEAST).log()))
        return found

    def nearness(self, known: Tensor) -> Tensor:
        """Minus the log of the distance to the nearest known image, mean over the views: float64 (M,)."""
        return torch.stack([near for _, near in self.nearest(known)]).mean(0)


def _of_vectors(
    embeddings: Embeddings,
    generator: Generator,
    tried: Tried,
    search: _Search,
    side: int,
    settings: MembershipSettings,
) -> tuple[Tensor, Tensor]:
    """Scores (M,) of who holds vectors and generator: by the denoising loss, and by what the vectors draw.

    A vector is tried on an image where what it draws is the nearest of all in one of the views. How far it lowers the
    loss is told against the start of stage 1, which everybody has who has the image.
    """
    check(embeddings, generator, _DRAWN_WITH)
    ids, own = {*tried.images.ids}, range(len(embeddings))
    rows = sorted(own, key=lambda row: (embeddings.ids[row] not in ids, embeddings.versions[row]))[:MOST_VECTORS]
    drawn = reconstruct(embeddings, generator, _DRAWN_WITH, rows)
    drawn = drawn if drawn.shape[-1] == side else resize(drawn, side)
    places, nearness = zip(*search.nearest(drawn), strict=True)
    vectors = embeddings.at()[rows]
    asked = InvertSettings(tokens=vectors.shape[1], eval_draws=settings.draws, seed=settings.seed)
    pixels = to_model_range(tried.images.resized(embeddings.resolution).images)
    parts = torch.arange(len(pixels)).split(_AT_ONCE)
    with torch.no_grad():
        start = torch.cat(
            [guesses(tried.images.subset(part.tolist()), pixels[part], generator, asked) for part in parts]
        )
        bank = EvaluationBank.draw(generator, encode(generator, pixels, _AT_ONCE), tried.images.ids, asked)
    with track("membership", (1 + len(places)) * len(pixels), "losses") as advance:
        losses = []
        for one in (start, *(vectors[place] for place in places)):
            losses.append(bank.loss(generator, one.to(generator.device), _AT_ONCE).double().log())
            advance(len(pixels))
    return losses[0] - torch.stack(losses[1:]).amin(0), torch.stack(nearness).mean(0)


def _odds(found: Trained, images: LabelledImages) -> Tensor:
    """Log odds (M,) of the true class, mean over the seeds of an arm."""
    each = []
    with torch.inference_mode():
        for classifier in found.by_seed.values():
            own = images.resized(classifier.image_size)
            each.append(log_odds(torch.cat([classifier(part) for part in own.images.split(500)]), own.labels))
    return torch.stack(each).mean(0)


def _finished(folder: Path) -> bool:
    """Whether a replicate has its images and classifiers, so that it can be a reference."""
    return read_record(folder) is not None and ClassifierStore(folder).manifest.last("complete") is not None


def _images_of(folder: Path, class_names: tuple[str, ...], settings: MembershipSettings) -> LabelledImages:
    """The synthetic images that a replicate trains on."""
    with run_lock(folder):
        return trained_on(folder, class_names, lambda: open_splits(folder), settings.device).synthetic


def _known(folder: Path, ids: Sequence[str]) -> Tensor:
    """Which images a replicate was made from: bool (M,)."""
    record = read_record(folder)
    own = {*record["train"]["ids"]} if record is not None else set()
    return torch.tensor([image_id in own for image_id in ids])
