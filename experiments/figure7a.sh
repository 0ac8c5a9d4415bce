#!/usr/bin/env bash
# Figure 7a of the paper: few-shot learners with and without synthetic images. Source: section 4.2 (EuroSAT there, aerial
# photographs of ucmerced-64 here).
# Usage: experiments/figure7a.sh <train.parquet> <test.parquet> <clip folder> [folder]
# <clip folder>: any CLIP of transformers, or mini-clip where none can be had and it knows the classes (docs/baselines.md).
# Expected (text): ours raises classifier tuning as much as LECF does. Measured: not measured. Cost: not measured.
set -euo pipefail
train=$1 test=$2 clip=$3 home=${4:-runs/figure7a}
dinv run "$train" --test "$test" --copies report --per-class 16 --arms real,synthetic --out "$home/ours"
dinv lecf "$train" --test "$test" --per-class 16 --clip "$clip" --soft-weight 0 --thresholds 0.95 --out "$home/lecf"
dinv few-shot "$train" --test "$test" --clip "$clip" --shots 1,2,4,8,16 --seeds 0,1,2,3,4 \
    --methods zero-shot,coop,tip-adapter,tip-adapter-f,classifier-tuning \
    --with none --with "ours=$home/ours" --with "lecf=$home/lecf/t0.95" --out "$home/few-shot"
