"""Some classes of a parquet file of labelled images: python benchmarks/some_classes.py IN OUT --classes cat,dog

Images keep their order; classes get the numbers of the order that is given.
"""

from __future__ import annotations

import argparse

from datasets import ClassLabel, Dataset, Image


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("source")
    options.add_argument("out")
    options.add_argument("--classes", required=True, help="names, with commas between them")
    given = options.parse_args()
    images = Dataset.from_parquet(given.source).cast_column("image", Image(decode=False))
    label, kept = images.features["label"], given.classes.split(",")
    number = {label.str2int(name): place for place, name in enumerate(kept)}
    rows = [row for row, found in enumerate(images["label"]) if found in number]
    features = images.features.copy()
    features["label"] = ClassLabel(names=kept)
    chosen = images.select(rows).map(lambda row: {"label": number[row["label"]]}, features=features)
    chosen.to_parquet(given.out)
    print(f"{given.out}: {len(rows)} images of {len(kept)} classes")


if __name__ == "__main__":
    main()
