"""Make a data set uneven: so many images of each class of a parquet file, drawn at random, as another parquet file.

    python benchmarks/imbalance.py cifar10-train.parquet cifar10-uneven.parquet --counts \
        4000,4000,4000,2000,2000,2000,1000,1000,500,500

Counts are those of the classes in the order of their labels. Images keep their bytes and the file its columns, so that
a `limit` of a run or a sweep takes subsets with the same proportions.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def uneven(table: pa.Table, counts: list[int], seed: int) -> pa.Table:
    """The rows, in their order, of so many images of each class. Raises SystemExit where a class has not as many."""
    labels = table["label"].to_numpy()
    stream, rows = np.random.default_rng(seed), []
    for label, count in enumerate(counts):
        members = np.flatnonzero(labels == label)
        if not 1 <= count <= len(members):
            raise SystemExit(f"--counts: {count} images of class {label}, which has {len(members)}")
        rows.append(stream.choice(members, count, replace=False))
    if len(counts) != len(set(labels.tolist())):
        raise SystemExit(f"--counts: {len(counts)} numbers for {len(set(labels.tolist()))} classes")
    return table.take(np.sort(np.concatenate(rows)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--counts", required=True, help="images of each class, by label: 40,20,10")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    found = uneven(pq.read_table(given.source), [int(one) for one in given.counts.split(",")], given.seed)
    pq.write_table(found, given.out)
    print(f"{given.out}: {len(found)} images")
