#!/usr/bin/env bash
# Figure 5 of the paper: real images, images of a GAN, GAN inversion, and Diffusion Inversion, one set of equal size each.
# Usage: experiments/figure5.sh <cifar10-train.parquet> <cifar10-test.parquet> [folder] [images] [GAN steps] [replicates]
#        python benchmarks/figure5.py <folder> <cifar10-test.parquet> <table>   # of two replicates or more: table.csv, table.md
# Source: section 4.1 and B.2.1. One variant of each image, so that all four sets are as large as the real one, as there.
# Expected (text): real above ours, ours above both of the GAN. Cost: most of it is the GAN's training, and the inversion of
# the GAN. Every replicate has a subset, a GAN, vectors, images and a classifier of its own. A killed run goes on; replicates,
# "0 1 2 3 4", can be done apart, beside each other.
set -euo pipefail
train=$1 test=$2 home=${3:-runs/figure5} images=${4:-200} steps=${5:-4000} replicates=${6:-0 1 2 3 4}
for r in $replicates; do
    run="$home/$r"
    source=("$train" --test "$test" --limit "$images" --data-seed "$r" --allow-near-duplicates)
    training=(--architecture resnet20 --recipe fast --train-steps 2000 --seeds "$r")
    dinv gan train "${source[@]}" --size 32 --steps "$steps" --seed "$r" --out "$run/gan-weights"
    dinv run "${source[@]}" --copies report --variants 1 --seed "$r" --no-own-size "${training[@]}" --arms real,synthetic --out "$run/inversion"
    dinv gan sample "$run/gan-weights" --run "$run/inversion" --seed "$r" --out "$run/gan"
    dinv gan invert "$run/gan-weights" "${source[@]}" --size 32 --seed "$r" --out "$run/gan-inversion"
    for method in gan gan-inversion; do
        dinv train "$run/$method" "${training[@]}" --arms synthetic
    done
done
