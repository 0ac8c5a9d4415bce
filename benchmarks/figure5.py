"""Figure 5's table from the run folders of experiments/figure5.sh: accuracies, and three claims judged.

Command:  python benchmarks/figure5.py runs/figure5 cifar10-test.parquet docs/results/today/figure5
Reads:    of each replicate the manifests below `inversion`, `gan` and `gan-inversion`, and the test images' labels.
Writes:   <out>.csv, one line for each classifier, and <out>.md.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from pathlib import Path

import torch

from diffusion_inversion.data.datasets import load_images
from diffusion_inversion.sweep.outcome import judge
from diffusion_inversion.train.evaluation import compare
from diffusion_inversion.train.store import ClassifierStore

SETS = {  # what it is called: folder of a replicate, arm
    "real images": ("inversion", "real"),
    "Diffusion Inversion": ("inversion", "synthetic"),
    "GAN": ("gan", "synthetic"),
    "GAN inversion": ("gan-inversion", "synthetic"),
}
CLAIMS = (
    ("Real images beat Diffusion Inversion, as many images each", "real images", "Diffusion Inversion"),
    ("Diffusion Inversion beats images of a GAN", "Diffusion Inversion", "GAN"),
    ("Diffusion Inversion beats GAN inversion", "Diffusion Inversion", "GAN inversion"),
)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("runs", type=Path, help="the folder of experiments/figure5.sh")
    options.add_argument("test", help="test images")
    options.add_argument("out", type=Path, help="the table, without .csv or .md")
    given = options.parse_args()
    folders = given.runs.iterdir() if given.runs.is_dir() else []
    replicates = sorted(
        folder
        for folder in folders
        if all(any(one["arm"] == arm for one in _records(folder / part)) for part, arm in SETS.values())
    )
    if len(replicates) < 2:
        options.error(
            f"{given.runs}: {len(replicates)} finished replicate(s), of which no spread can be told. Finish two with "
            "experiments/figure5.sh."
        )
    test, out = load_images(given.test), given.out
    accuracies: dict[str, list[float]] = {name: [] for name in SETS}
    correct: dict[str, list[torch.Tensor]] = {name: [] for name in SETS}
    with out.with_suffix(".csv").open("w", newline="") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(["case", "arm", "replicate", "seed", "measure", "value"])
        for folder in replicates:
            for name, (part, arm) in SETS.items():
                (record,) = (one for one in _records(folder / part) if one["arm"] == arm)
                right = torch.tensor(record["predictions"]) == test.labels
                accuracies[name].append(float(right.double().mean()))
                correct[name].append(right)
                case = "" if arm == "real" else name
                writer.writerow([case, arm, folder.name, record["seed"], "accuracy", accuracies[name][-1]])
    stacked = {name: torch.stack(rows).double() for name, rows in correct.items()}
    n = len(replicates)
    text = [
        "# Figure 5: images of a GAN, GAN inversion, and Diffusion Inversion", "",
        "As many images as there are real ones in each set; 2,000 steps in every arm.", "",
        f"`experiments/figure5.sh`, then `python benchmarks/figure5.py`; n={n} replicates, each with a subset, a GAN, "
        f"vectors, images and a classifier of its own; {len(test):,} test images.", "",
        "| images | test accuracy in % |", "| --- | --- |",
    ]  # fmt: skip
    for name, values in accuracies.items():
        text.append(f"| {name} | {100 * statistics.fmean(values):.1f} ± {100 * statistics.stdev(values):.1f} (n={n}) |")
    text += ["", "## Claims", "", "| claim | of | differences | outcome |", "| --- | --- | --- | --- |"]
    for says, greater, less in CLAIMS:
        found = compare(greater, accuracies, correct=stacked, baseline=less, unit="replicates")
        assert found.interval is not None
        low, high = found.interval
        by = f"{100 * found.difference:+.3g} [{100 * low:+.3g}, {100 * high:+.3g}] points"
        text.append(f"| {says} | accuracy | {by} | {judge([(found.difference, low, high)])} |")
    text += ["", "Each interval holds its claim alone at 95 %.", ""]
    out.with_suffix(".md").write_text("\n".join(text))
    print("\n".join(text))


def _records(run: Path) -> list[dict[str, object]]:
    return list(ClassifierStore(run).manifest.units().values())


if __name__ == "__main__":
    main()
