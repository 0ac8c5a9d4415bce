#!/usr/bin/env bash
# Stable Diffusion 1.4 on STL-10 over a night or two of one GPU: what it will take, then the work. A killed call goes on.
# Usage: experiments/sd14/run.sh [folder for the sweep]
# Needs: a GPU with 16 GB, the weights of CompVis/stable-diffusion-v1-4 (its licence is CreativeML OpenRAIL-M) and STL-10,
# which are fetched when they are first used.
set -euo pipefail
home=${1:-sweeps/sd14}
dinv doctor
dinv plan stl10 --per-class 200 --allow-near-duplicates --generator CompVis/stable-diffusion-v1-4 --resolution 256 --preset paper
dinv sweep "$(dirname "$0")/stl10.toml" --out "$home"
