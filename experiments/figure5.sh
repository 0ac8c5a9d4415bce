#!/usr/bin/env bash
# Figure 5 of the paper: real images, images of a GAN, GAN inversion, and Diffusion Inversion, one set of equal size each.
# Usage: experiments/figure5.sh <cifar10-train.parquet> <cifar10-test.parquet> [folder] [images] [GAN steps] [replicates]
# Source: section 4.1 and B.2.1. One variant of each image, so that all four sets are as large as the real one, as there.
# Expected (text): real above ours, ours above both of the GAN. Measured: not measured. Cost: not measured; most of it is the
# GAN's training. Every replicate has a subset, a GAN, vectors, images and a classifier of its own. A killed run goes on.
set -euo pipefail
train=$1 test=$2 home=${3:-runs/figure5} images=${4:-2000} steps=${5:-30000} replicates=${6:-5}
for ((r = 0; r < replicates; r++)); do
    run="$home/$r"
    source=("$train" --test "$test" --limit "$images" --data-seed "$r" --allow-near-duplicates)
    training=(--architecture resnet20 --train-steps 2000 --seeds "$r")
    dinv run "${source[@]}" --copies report --variants 1 --seed "$r" --no-own-size "${training[@]}" --arms real,synthetic --out "$run/inversion"
    dinv gan train "${source[@]}" --size 32 --steps "$steps" --seed "$r" --out "$run/gan-weights"
    dinv gan sample "$run/gan-weights" --run "$run/inversion" --seed "$r" --out "$run/gan"
    dinv gan invert "$run/gan-weights" "${source[@]}" --size 32 --seed "$r" --out "$run/gan-inversion"
    for method in gan gan-inversion; do
        dinv train "$run/$method" "${training[@]}" --arms synthetic
    done
done
