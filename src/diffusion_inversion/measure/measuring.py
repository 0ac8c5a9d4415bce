"""Measure generated images against real ones: features, then statistics, then distances (paper, sections 4.2 and C.3).

The paper's numbers are of PyTorch-StudioGAN's Inception features; only `--extractor inception` compares with them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.datasets import load_images
from ..data.images import LabelledImages
from ..data.naming import class_folder
from ..data.sources import Role, default_root
from ..engine.progress import track
from ..errors import UsageError
from ..generator.device import resolve_device
from .extractors.cache import cached_features
from .extractors.catalog import open_extractor
from .extractors.extractor import Extractor
from .extractors.stored import is_features, load_features
from .metrics.frechet import fid, fid_infinity, small_sample_warning
from .metrics.inputs import check_sizes, checked
from .metrics.intervals import Estimate, estimate, fid_error, manifold_errors, wide_intervals
from .metrics.kernel import (
    CMMD_SCALE,
    cubic_kernel,
    discrepancy,
    gaussian_kernel,
    kid,
    random_subsets,
    unit_rows,
    without_direction,
)
from .metrics.manifold import manifold_values
from .metrics.units import Units, by_content, jackknife, named_units
from .variant_groups import named_as_real, read_groups, recorded_sources

KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
_HIGHER_IS_BETTER = ("precision", "recall", "density", "coverage")


@dataclass(frozen=True)
class ClassDistance:
    """FID and KID between the images of one class; no intervals."""

    fid: float
    kid: float
    n_real: int
    n_generated: int


@dataclass(frozen=True)
class Measurement:
    """All metrics of generated against real images. The names in `metrics` and `per_class` say the features.

    - `metrics`: fid, fid_infinity, kid, cmmd, precision, recall, density, coverage, each followed by the extractor's
      suffix ("" for Inception, "_npy" where both sides were given as features). Low and high are None where there
      were too few images or units for an interval.
    - `units_real`, `units_generated`: what was resampled for the intervals, images or groups of them; `resampled` says
      it in words.
    - `kid_subsets`: mean and standard deviation over subsets, how many and of how many images: torch-fidelity's KID.
      No deviation (None) where every subset is all images of both sides.
    - `per_class`: classes that both sides have, two images of each at least; empty where a side has no labels.
    """

    real: str
    generated: str
    n_real: int
    n_generated: int
    units_real: int
    units_generated: int
    resampled: str
    k: int
    extractor: str
    dim: int
    preprocessing: str
    weights_sha256: str
    confidence: float
    seed: int
    metrics: dict[str, Estimate]
    kid_subsets: dict[str, float | None]
    per_class: dict[str, ClassDistance]
    warnings: tuple[str, ...]

    @property
    def suffix(self) -> str:
        """What ends the names of the metrics; also meant by the names in `kid_subsets` and `per_class`."""
        return next(iter(self.metrics)).removeprefix("fid")

    def record(self) -> dict[str, Any]:
        """JSON data: every field, estimates as {value, low, high, error}; value is None where it is not defined."""
        record = asdict(self)
        for found in record["metrics"].values():
            found["value"] = None if math.isnan(found["value"]) else found["value"]
        return record

    def table(self) -> str:
        """Lines for a terminal: what was compared, each metric with its interval, warnings."""
        width = max(map(len, self.metrics))
        lines = [
            f"{self.generated} ({self.n_generated:,} generated) against {self.real} ({self.n_real:,} real), "
            f"features {self.extractor}, k = {self.k}",
            f"{'':{width}}  {'value':>10}  {100 * self.confidence:g} % interval",
        ]
        for name, found in self.metrics.items():
            span = "no interval" if found.low is None else f"{found.low:.4g} to {found.high:.4g}"
            better = "higher is better" if name.startswith(_HIGHER_IS_BETTER) else "lower is better"
            value = "undefined" if math.isnan(found.value) else f"{found.value:.4g}"
            lines.append(f"{name:{width}}  {value:>10}  {span:24}  {better}")
        lines.append(f"intervals: {self.resampled}")
        subsets = self.kid_subsets
        spread = ", all of both sides: no spread" if subsets["std"] is None else f" ± {subsets['std']:.2g}"
        lines.append(
            f"kid{self.suffix} over {subsets['subsets']:g} subsets of {subsets['size']:g} images: "
            f"{subsets['mean']:.4g}{spread}"
        )
        if self.per_class:
            names_width = max(map(len, ["class", *self.per_class]))
            fid_name, kid_name = f"fid{self.suffix}", f"kid{self.suffix}"
            lines.append(f"{'class':{names_width}}  {fid_name:>12}  {kid_name:>12}  real  generated")
            lines += [
                f"{name:{names_width}}  {c.fid:12.4g}  {c.kid:12.3g}  {c.n_real:4d}  {c.n_generated:9d}"
                for name, c in self.per_class.items()
            ]
        return "\n".join([*lines, *(f"Note: {warning}" for warning in self.warnings)])


def measure(
    real: str | Path,
    generated: str | Path,
    *,
    extractor: str = "lite0",
    weights: str | Path | None = None,
    k: int = 5,
    real_split: Role = "train",
    generated_split: Role = "train",
    size: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    batch_size: int = 64,
    device: str = "auto",
    cache: Path | None = None,
    root: str | Path | None = None,
    real_groups: str | Path | None = None,
    generated_groups: str | Path | None = None,
) -> Measurement:
    """Compare two sets of images, each DATA (as `load_images`, with its split, size and limit) or an `.npy`.

    An `.npy` holds features (N, D), floating point, one row an image; it is taken to be of `extractor` where the
    other side is DATA.

    - `extractor`, `weights`: as `open_extractor`. `k`: neighbours of precision, recall, density and coverage.
    - `seed`: of `limit` and of the intervals. `confidence`: of the intervals, in (0, 1).
    - `real_groups`, `generated_groups`: text files that name the group of each image (`variant_groups.read_groups`),
      such as its source or its patient. Images of one group are resampled together. A folder that stage 2 wrote knows
      the sources of its images; where the real images are among these, each goes, or its group, with what was made
      from it: by its id, and in a run folder by its pixels, whatever its id.
    - `cache`: folder for features of DATA; default `features` below `root`, or the data folder.

    Raises UsageError for arguments, features and the extractor before images are decoded, for other files that are not
    there as each side is read; and DataError.
    """
    _check(k, confidence, batch_size)
    where = resolve_device(device)
    given = {str(data): load_features(Path(data)) for data in (real, generated) if is_features(data)}
    network = None if is_features(real) and is_features(generated) else open_extractor(extractor, where, weights)
    folder = cache if cache is not None else default_root(root) / "features"

    def side(data: str | Path, split: Role, groups: str | Path | None) -> _Side:
        if str(data) in given:
            features = given[str(data)]
            return _Side(
                str(data), features, None, None if groups is None else read_groups(groups, None, len(features))
            )
        images = load_images(data, split=split, size=size, limit=limit, seed=seed, root=root)
        if groups is not None:
            return _Side(images.name, torch.empty(0), images, read_groups(groups, images.ids, len(images)))
        sources = recorded_sources(data)
        found = [sources.get(image_id, image_id) for image_id in images.ids] if sources else None
        return _Side(images.name, torch.empty(0), images, found)

    # Both are read before either goes through the network: a mistake in the second shows at once.
    real_side = side(real, real_split, real_groups)
    generated_side = side(generated, generated_split, generated_groups)
    if generated_groups is None and generated_side.groups and real_side.images:
        given_groups = None if real_groups is None else real_side.groups
        groups = named_as_real(generated_side.groups, real_side.images, given_groups, generated)
        generated_side = replace(generated_side, groups=groups)
    check_sizes(real_side.shape(network), generated_side.shape(network), least=max(k + 1, 4))
    sides = [_extracted(found, network, folder, batch_size) for found in (real_side, generated_side)]
    return _compare(sides[0], sides[1], network, k, seed, confidence, _metrics_device(where))


def compare_images(
    real: LabelledImages,
    generated: LabelledImages,
    *,
    extractor: str,
    weights: str | Path | None,
    k: int,
    device: str,
    generated_groups: Sequence[str],
) -> Measurement:
    """`measure` for images that are in memory already, by its defaults; arguments and errors are its own.

    generated_groups: the source of each generated image, by the ids of real images where these are among them.
    """
    where = resolve_device(device)
    network = open_extractor(extractor, where, weights)
    given = [
        _Side(images.name, torch.empty(0), images, groups)
        for images, groups in ((real, None), (generated, generated_groups))
    ]
    check_sizes(given[0].shape(network), given[1].shape(network), least=max(k + 1, 4))
    sides = [_extracted(side, network, default_root() / "features", 64) for side in given]
    return _compare(sides[0], sides[1], network, k, 0, 0.95, _metrics_device(where))


def _check(k: int, confidence: float, batch_size: int) -> None:
    if k < 1:
        raise UsageError(f"k={k}: give at least 1")
    if not 0 < confidence < 1:
        raise UsageError(f"confidence={confidence}: give a share between 0 and 1, both excluded")
    if batch_size < 1:
        raise UsageError(f"batch_size={batch_size}: give at least 1")


def _metrics_device(where: torch.device) -> torch.device:
    """CUDA computes the metrics too; other devices may lack float64."""
    return where if where.type == "cuda" else torch.device("cpu")


@dataclass(frozen=True, eq=False)
class _Side:
    name: str
    features: Tensor  # (N, D) on the CPU; empty until extracted
    images: LabelledImages | None = None
    groups: Sequence[str] | None = None  # of each image; None: each stands alone

    def shape(self, network: Extractor | None) -> Sequence[int]:
        """(N, D) of the features that it has, or will have."""
        return self.features.shape if self.images is None or network is None else (len(self.images), network.dim)


def _units(real: _Side, generated: _Side) -> Units:
    """What is resampled. Real images without groups go by their ids, under which sources are known."""

    def names(side: _Side, own: str) -> list[tuple[str, str]]:
        if side.groups is not None:
            return [("", group) for group in side.groups]
        if side is real and side.images is not None and generated.groups is not None:
            return [("", image_id) for image_id in side.images.ids]
        return [(own, str(row)) for row in range(len(side.features))]

    return by_content(
        named_units(names(real, "real"), names(generated, "generated")), real.features, generated.features
    )


def _resampled(real: _Side, generated: _Side, units: Units) -> str:
    """What the intervals resample, in words."""

    def words(side: _Side, kind: str, count: int) -> str:
        images = f"{len(side.features):,} {kind} images"
        return images if count == len(side.features) else f"{count:,} groups of {images}"

    both = [words(real, "real", units.counts[0]), words(generated, "generated", units.counts[1])]
    said = f"{both[0]} and {both[1]} are resampled"
    if units.shared:
        common = len(units.strata()[0])
        said += f", {common:,} of them on both sides at once (a source with what was made from it)"
    return said


def _extracted(found: _Side, network: Extractor | None, cache: Path, batch_size: int) -> _Side:
    if network is None or found.images is None:
        return found
    with track(f"{network.name} features of {found.name}", len(found.images)) as advance:
        features = cached_features(network, found.images.images, cache, batch_size=batch_size, advance=advance)
    return replace(found, features=features)


def _compare(
    real: _Side,
    generated: _Side,
    network: Extractor | None,
    k: int,
    seed: int,
    confidence: float,
    device: torch.device,
) -> Measurement:
    x, y = checked(real.features.to(device), generated.features.to(device), least=max(k + 1, 4))
    n, m, dim = len(x), len(y), x.shape[1]
    size = min(KID_SUBSET_SIZE, n, m)
    units = _units(real, generated)
    sets = jackknife(units, seed) if units.enough else None
    parts = (sets.real, sets.generated) if sets else (torch.zeros(n, 0).double(), torch.zeros(m, 0).double())
    folds, subsets = parts[0].shape[1], random_subsets(n, m, subsets=KID_SUBSETS, size=size)
    cubic = discrepancy(cubic_kernel, x, y, *(torch.cat(both, dim=1) for both in zip(parts, subsets, strict=True)))
    zeros = [int((~side.any(dim=1)).sum()) for side in (x, y)]
    # A row that is zero has no direction, which CMMD compares; the other metrics have a use for it.
    gaussian = None if any(zeros) else discrepancy(gaussian_kernel, unit_rows(x), unit_rows(y), *parts)
    values, errors = manifold_values(x, y, k=k), manifold_errors(x, y, k=k, seed=seed, units=units)
    of_fid = fid_error(x, y, seed, units)

    suffix = network.suffix if network else "_npy"
    freedom = units.groups - 1 if units.enough else None
    metrics = {
        "fid": estimate(fid(x, y), of_fid, confidence, least=0.0, freedom=freedom),
        "fid_infinity": estimate(
            fid_infinity(x, y, seed=seed, units=units), of_fid, confidence, least=0.0, freedom=freedom
        ),
        "kid": estimate(cubic.unbiased, sets.error(cubic.parts[:folds]) if sets else None, confidence, freedom=freedom),
        "cmmd": Estimate(float("nan"), None, None)
        if gaussian is None
        else estimate(
            CMMD_SCALE * gaussian.biased,
            CMMD_SCALE * sets.error(gaussian.parts) if sets else None,
            confidence,
            least=0.0,
            freedom=freedom,
        ),
    }
    for name, error in errors.items():
        most = torch.inf if name == "density" else 1.0
        metrics[name] = estimate(
            float(getattr(values, name).mean()), error, confidence, least=0.0, most=most, freedom=freedom
        )
    drawn = cubic.parts[folds:]
    return Measurement(
        real=real.name,
        generated=generated.name,
        n_real=n,
        n_generated=m,
        units_real=units.counts[0],
        units_generated=units.counts[1],
        resampled=_resampled(real, generated, units),
        k=k,
        extractor=network.name if network else "npy",
        dim=dim,
        preprocessing=network.preprocessing if network else "",
        weights_sha256=network.weights_sha256 if network else "",
        confidence=confidence,
        seed=seed,
        metrics={f"{name}{suffix}": found for name, found in metrics.items()},
        kid_subsets={
            "mean": float(drawn.mean()),
            "std": None if size == n == m else float(drawn.std(correction=0)),
            "subsets": KID_SUBSETS,
            "size": size,
        },
        per_class=_per_class(real, generated, x, y),
        warnings=(*_warnings(real, generated, network, dim, units), *without_direction(zeros)),
    )


def _per_class(real: _Side, generated: _Side, x: Tensor, y: Tensor) -> dict[str, ClassDistance]:
    if real.images is None or generated.images is None:
        return {}
    found = {}
    label_of = {class_folder(name): label for label, name in enumerate(generated.images.class_names)}
    for label, name in enumerate(real.images.class_names):
        if class_folder(name) not in label_of:
            continue
        own = x[(real.images.labels == label).to(x.device)]
        other = y[(generated.images.labels == label_of[class_folder(name)]).to(y.device)]
        if min(len(own), len(other)) >= 2:
            found[name] = ClassDistance(fid(own, other), kid(own, other), len(own), len(other))
    return found


def _warnings(real: _Side, generated: _Side, network: Extractor | None, dim: int, units: Units) -> tuple[str, ...]:
    found = []
    if biased := small_sample_warning(len(real.features), len(generated.features), dim):
        found.append(biased)
    found += wide_intervals(units, dim)
    given = [side.name for side in (real, generated) if side.images is None]
    if network and given:
        found.append(f"the features in {given[0]} are taken to be of {network.name} as it is here")
    if real.images and generated.images:
        if real.images.size != generated.images.size:
            found.append(
                f"real images have {real.images.size} px, generated ones {generated.images.size} px: part of every "
                "distance is sharpness; give --size to make them equal"
            )
        only = {*map(class_folder, real.images.class_names)} ^ {*map(class_folder, generated.images.class_names)}
        if only:
            found.append(f"classes on one side only: {', '.join(sorted(only)[:5])}{', ...' if len(only) > 5 else ''}")
    return tuple(found)
