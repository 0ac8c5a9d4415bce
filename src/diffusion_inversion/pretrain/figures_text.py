"""The figures as Markdown: one function from the content of figures.json to text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..engine.text import visible
from ..measure.metrics.frechet import small_sample_warning
from .domains import AUTOENCODED, GUESS
from .judge import JUDGE_ACCURACY
from .pieces import found_in

TARGET, CORPUS = "target", "held-out corpus"  # what the pieces call sets that are no domain
NONE = "not measured"
OWN = "own"


def short(weights_hash: str) -> str:
    """What keys and file names call a generator."""
    return weights_hash[:12]


def figures_markdown(content: dict[str, Any], pictures: bool = True) -> str:
    """Tables of everything that `content` holds for its generators; what was not measured says so.

    `pictures` adds the grids, by their paths from where figures.json lies.
    """
    parts = [_generators(content)]
    if found_in(content, "judge") is not None:
        parts.append(_agreement(content))
    if content["domains"]:
        parts.append(_domains(content))
    if content["domains"] and pictures:
        parts.append(_pictures(content))
    parts += [_quality(content), _autoencoders(content)]
    return "\n".join(part for part in parts if part)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; cells lose what would end them."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(_cell(cell) for cell in line) + " |\n" for line in lines)


def _cell(text: str) -> str:
    return visible(text).replace("|", "\\|").replace("\n", " ")


def _percent(found: dict[str, Any] | None) -> str:
    """A share with its interval, in %."""
    if found is None:
        return NONE
    low, high = found["interval"]
    return f"{100 * found['share']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _generators(content: dict[str, Any]) -> str:
    rows = [
        [
            g["label"],
            f"{g['resolution']} px",
            f"f = {g['vae_factor']}, {g['latent_channels']} channels",
            f"{g['unet_parameters'] / 1e6:.1f} M",
            g["dtype"],
            short(g["hash"]),
        ]
        for g in content["generators"]
    ]
    return "## Generators\n" + table(["name", "draws at", "autoencoder", "UNet", "arithmetic", "weights"], rows)


def _judge(content: dict[str, Any]) -> str:
    judge = found_in(content, "judge")
    assert judge is not None
    text = f"{judge['architecture']} at {judge['size']} px, {_percent(judge)} % right on {judge['n']:,} test images"
    return text if judge["share"] >= JUDGE_ACCURACY else f"{text}, below the {100 * JUDGE_ACCURACY:.0f} % of a judge"


def _agreement(content: dict[str, Any]) -> str:
    sources, generators = found_in(content, "agreement/sources"), content["generators"]
    keys = [("autoencoded sources", AUTOENCODED)]
    for step in content["steps"]:
        keys += [
            (f"{_view(str(step))}, guidance {scale:g}", f"{step}/{scale:g}") for scale in content["guidance_scales"]
        ]
    rows = [
        [name, *(_percent(found_in(content, f"agreement/{short(g['hash'])}/{key}")) for g in generators)]
        for name, key in keys
    ]
    return (
        "## Label agreement\n"
        f"Share of images to which the judge gives their source's label, in %, with 95 % intervals (Wilson), for "
        f"{sources['n'] if sources else 0:,} training images of the target, on which the judge was trained too. "
        f"Judge: {_judge(content)}; {_percent(sources)} % right on the sources themselves. Vectors are drawn as they "
        f"are (lambda = alpha = 0) in {content['sampler']['inference_steps']} DPM-Solver++ steps; guidance 1 = off.\n\n"
        + table(["images", *(g["label"] for g in generators)], rows)
    )


def _each(
    content: dict[str, Any],
    kind: str,
    names: Sequence[str],
    header: Sequence[str],
    cells: Callable[[dict[str, Any]], list[str]],
) -> str:
    """A table with a row for every set and generator that has a piece of this kind."""
    rows = []
    for name in names:
        for g in content["generators"]:
            found = found_in(content, f"{kind}/{name}/{short(g['hash'])}")
            rows.append([name, g["label"], *(cells(found) if found is not None else [NONE] * len(header))])
    return table(["data", "generator", *header], rows)


def _domains(content: dict[str, Any]) -> str:
    names, steps = content["domains"], [str(step) for step in content["steps"]]
    views = [AUTOENCODED, *steps]
    titles = [_view(step) for step in steps]

    def loss_cells(found: dict[str, Any]) -> list[str]:
        values = [f"{found['losses'][step]:.3f} ({found['ratio'][step]:.3f})" for step in steps]
        return [f"{found['n']:,}", f"{found['null_loss']:.3f}", *values]

    def of_views(kind: str, size: str, form: str) -> str:
        def cells(found: dict[str, Any]) -> list[str]:
            return [format(found["views"][view][kind][size], form) for view in views]

        return _each(content, "domain", names, [AUTOENCODED, *titles], cells)

    parts = [
        "## Domains\n"
        "Mean loss on stage 1's evaluation bank, in brackets its ratio to the empty prompt's. The loss is of a "
        "generator's own latents: between different autoencoders only the ratio compares, and better the image "
        "space below.\n\n" + _each(content, "domain", names, ["n", "empty prompt", *titles], loss_cells),
    ]
    sizes = [str(size) for size in content["sizes"]]
    for size in (OWN, *sizes):
        where = "at each generator's own resolution" if size == OWN else f"with both at {size} px"
        parts.append(f"PSNR to the source in dB, {where}:\n\n{of_views('psnr', size, '.2f')}")
    for size in sizes:
        parts.append(
            f"Distance to the source in Lite0's profile, both at {size} px (0 = the same, 1 = as far as another image "
            f"of the set):\n\n{of_views('lite0', size, '.3f')}"
        )
    return "\n".join(parts)


def _pictures(content: dict[str, Any]) -> str:
    parts = []
    for name in content["domains"]:
        for g in content["generators"]:
            found = found_in(content, f"domain/{name}/{short(g['hash'])}")
            if found is not None:
                title = visible(f"{name}, {g['label']}")
                rows = ", ".join(_view(row) for row in found["pictured"])
                parts.append(f"{title}; rows: {rows}\n\n![{title}](figures/{found['picture']})\n")
    return "\n".join(parts)


def _view(name: str) -> str:
    """A view of a source in words."""
    if not name.isdigit():
        return name
    return "guess" if name == str(GUESS) else f"{name} steps"


def _quality(content: dict[str, Any]) -> str:
    found = {g["label"]: found_in(content, f"quality/{short(g['hash'])}") for g in content["generators"]}
    first = next((f for f in found.values() if f is not None), None)
    if first is None:
        return ""
    rows = []
    for label, figures in found.items():
        if figures is None:
            rows.append([label, *[NONE] * 4])
            continue
        for size, at in figures["sizes"].items():
            error = "" if at["fid_error"] is None else f" ± {at['fid_error']:.1f}"
            kid = f"{1000 * at['kid_lite0']:.2f} ± {1000 * at['kid_std']:.2f}"
            rows.append([label, f"{size} px", f"{figures['n']:,}", f"{at['fid_lite0']:.1f}{error}", kid])
    sampler = content["sampler"]
    warning = small_sample_warning(first["n_real"], first["n"], first["dim"])
    return (
        "## Quality of samples\n"
        f"Images of class names in turn (guidance {sampler['guidance_scale']:g}, {sampler['inference_steps']} "
        f"DPM-Solver++ steps) against {first['n_real']:,} held-out images of the corpus, both resized to the same "
        "side, on pooled Lite0 features (not the standard FID). FID ± jackknife standard error; 1,000 x KID, mean ± "
        f"std over subsets of images.{f' {warning}.' if warning else ''}\n\n"
        + table(["generator", "compared at", "n", "fid_lite0", "KID"], rows)
    )


def _autoencoders(content: dict[str, Any]) -> str:
    names = [
        name
        for name in (TARGET, *content["tests"], CORPUS)
        if any(found_in(content, f"autoencoder/{name}/{short(g['hash'])}") for g in content["generators"])
    ]
    if not names:
        return ""
    sizes = [OWN, *(str(size) for size in content["sizes"])]

    def cells(found: dict[str, Any]) -> list[str]:
        quality = [f"{found['psnr'][size]:.2f}" if size in found["psnr"] else "-" for size in sizes]
        sharp = [found["sharpness"].get(size) for size in sizes]
        line = [f"{found['n']:,}", *quality, *("-" if value is None else f"{value:.3f}" for value in sharp)]
        if "accuracy" not in found:
            return [*line, "-", "-", "-"]
        k = found["classifiers"]
        means = [f"{100 * sum(found[name]) / k:.1f}" for name in ("accuracy", "accuracy_autoencoded")]
        lost = f"{100 * found['lost']:+.1f} ± {100 * found['standard_error']:.1f} (n={k})"
        return [*line, *means, lost]

    header = ["n", *(f"PSNR {_at(size)}" for size in sizes), *(f"sharpness {_at(size)}" for size in sizes)]
    judge = f" On the {TARGET}: {_judge(content)}." if found_in(content, "judge") is not None else ""
    return (
        "## Autoencoder\n"
        "Held-out images through the autoencoder alone. PSNR in dB; sharpness: mean absolute horizontal gradient over "
        "standard deviation, decoded over original; accuracy in % of classifiers trained on real images, on the "
        f"images and on the autoencoded ones, and what is lost ± standard error (seeds and images).{judge}\n\n"
        + _each(content, "autoencoder", names, [*header, "accuracy", "autoencoded", "lost"], cells)
    )


def _at(size: str) -> str:
    return "(own)" if size == OWN else f"({size} px)"
