#!/usr/bin/env bash
# CIFAR-10 with 200 and 500 real images, 10 variants each, three arms, five seeds (docs/results/first-mini.md).
# Usage: experiments/cifar10.sh <cifar10-train.parquet> <cifar10-test.parquet> [folder for the runs]
# Cost: about half an hour on 2 CPU cores. A killed run goes on with the same command.
set -euo pipefail
train=$1 test=$2 runs=${3:-runs}
for images in 200 500; do
    dinv run "$train" --test "$test" --copies report --limit "$images" --variants 10 \
        --train-steps 500 --train-batch-size 64 --seeds 0,1,2,3,4 --out "$runs/cifar10-$images"
done
