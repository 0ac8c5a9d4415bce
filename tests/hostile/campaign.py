"""Read many mutated embedding shards: python tests/hostile/campaign.py --count 100000 --seed 0

Prints one JSON object: how many were accepted and refused by kind of mutation, faults (a fault is anything but a
tensor that safetensors reads too, or a clean error), peak memory above the start in MiB, and seconds.
Exits with 1 where there was a fault, whose seed reproduces it.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from mutations import mutate, outcome, valid_shard


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    counts: dict[str, Counter[str]] = {}
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard.safetensors"
        assert outcome(path, valid_shard()) == "accepted"
        start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(arguments.count):
            seed = arguments.seed * 1_000_000_007 + number
            name, data = mutate(random.Random(seed))
            try:
                found = outcome(path, data)
            except Exception as error:  # Whatever it is, it is what the campaign looks for.
                found = "fault"
                faults.append({"seed": seed, "mutation": name, "error": f"{type(error).__name__}: {error}"[:300]})
            counts.setdefault(name, Counter())[found] += 1
    total = sum(counts.values(), Counter())
    summary = {
        "count": arguments.count,
        "seed": arguments.seed,
        **{key: total[key] for key in ("accepted", "refused", "fault")},
        "by_mutation": {name: dict(counts[name]) for name in sorted(counts)},
        "faults": faults[:10],
        "peak_mib_above_start": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, 1),
        "seconds": round(time.monotonic() - start, 1),
    }
    print(json.dumps(summary, indent=1))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
