"""What very many tiny images cost: peak memory, seconds and files of each stage, each a process of its own.

    python benchmarks/million.py 20000 100000 1000000 [--stages inspect,sample] [--storage png] [--folder DIR]

For each number N: a parquet file of N noise images of 8 px is inspected; N / 50 of them go through a toy generator of
diffusers' classes (random weights, no step of stage 1, one of stage 2), 50 variants each: N synthetic images. These are
verified and trained on for 20 steps. Only --stages are printed; without inspect the file has N / 50 images and some to
test. One thread. Memory is the most that the process held at a time (ru_maxrss), libraries and mapped files with it:
what does not depend on N shows in small N.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
SIDE, VARIANTS, BATCH, TESTED, WIDTH, STEPS = 8, 50, 1000, 200, 16, 20
STAGES = ("inspect", "invert", "sample", "verify", "train")


def write_data(path: Path, count: int) -> None:
    """A parquet file of noise in two classes, as `datasets` has it, 10,000 rows at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    from diffusion_inversion.data.tables import class_label_metadata
    from diffusion_inversion.sample.png import encode_png

    cell = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    named = class_label_metadata(("cat", "dog"), image="Image")
    schema = pa.schema([("image", cell), ("label", pa.int64())], metadata=named)
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, count, 10_000):
            stream, rows = torch.Generator().manual_seed(start), range(start, min(start + 10_000, count))
            pixels = torch.randint(256, (len(rows), 3, SIDE, SIDE), generator=stream, dtype=torch.uint8)
            images = [{"bytes": encode_png(image), "path": None} for image in pixels]
            writer.write_table(pa.table({"image": pa.array(images, cell), "label": [row % 2 for row in rows]}, schema))


def write_generator(folder: Path) -> None:
    """Stable Diffusion's parts with random weights, as small as they may be: 8 px, latents of 4 x 4."""
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from diffusion_inversion.pretrain.tokenizer import train_tokenizer

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(4, 4), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=2, sample_size=SIDE,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=SIDE // 2, in_channels=4, out_channels=4, block_out_channels=(4,), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",), attention_head_dim=2,
        norm_num_groups=2, cross_attention_dim=WIDTH,
    )  # fmt: skip
    text = CLIPTextConfig(
        hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, vocab_size=600,
        max_position_embeddings=16, bos_token_id=0, pad_token_id=1, eos_token_id=1,
    )  # fmt: skip
    StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=CLIPTextModel(text),
        tokenizer=train_tokenizer(["a photo of a cat"], vocab_size=600),
        scheduler=PNDMScheduler(beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


@dataclass(frozen=True)
class Cost:
    """Of one process."""

    seconds: float
    megabytes: float  # at its peak


def run(*arguments: str) -> Cost:
    """Run `dinv` in a process of its own. Leaves with its output where it fails."""
    environment = os.environ | {"PYTHONPATH": str(HERE / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "diffusion_inversion", *arguments]
    with tempfile.TemporaryFile() as output:
        start = time.monotonic()
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - start
        if status:
            output.seek(0)
            sys.exit(f"{' '.join(command)}: {output.read().decode()[-3000:]}")
    return Cost(seconds, usage.ru_maxrss / 1000)


def commands(folder: Path, count: int, storage: str) -> dict[str, list[str]]:
    """The command of each stage."""
    data, made = str(folder / "data.parquet"), str(folder / "run")
    few = ["--limit", str(count // VARIANTS), "--test-limit", str(TESTED), "--allow-near-duplicates"]
    return {
        "inspect": ["inspect", data, "--allow-near-duplicates"],
        "invert": [
            "invert", data, *few, "--out", made, "--generator", str(folder / "toy"), "--steps", "0", "--init", "random",
            "--tokens", "1", "--invert-batch-size", str(BATCH), "--device", "cpu",
        ],
        "sample": [
            "sample", made, "--variants", str(VARIANTS), "--inference-steps", "1", "--sample-batch-size", str(BATCH),
            "--storage", storage, "--device", "cpu",
        ],
        "verify": ["verify", made],
        "train": [
            "train", made, "--train-steps", str(STEPS), "--seeds", "0", "--arms", "real+synthetic", "--device", "cpu",
        ],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("counts", type=int, nargs="+", help="images, multiples of 50")
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--storage", default="auto")
    parser.add_argument("--folder", type=Path, default=None, help="where data and runs lie for the time being")
    given = parser.parse_args()
    asked = given.stages.split(",")
    print("| images | stage | peak memory, MB | seconds | seconds per 100,000 | files of the run | MB of them |")
    print("|---|---|---|---|---|---|---|")
    for count in given.counts:
        folder = Path(tempfile.mkdtemp(prefix="dinv-million-", dir=given.folder))
        try:
            write_generator(folder / "toy")
            write_data(folder / "data.parquet", count if "inspect" in asked else 2 * count // VARIANTS + 10 * TESTED)
            for stage, command in commands(folder, count, given.storage).items():
                if stage == "inspect" and stage not in asked:
                    continue
                cost = run(*command)
                files = [path for path in (folder / "run").rglob("*") if path.is_file()]
                size = sum(path.stat().st_size for path in files) / 1e6
                if stage in asked:
                    images = count // VARIANTS if stage == "invert" else count
                    cells = [f"{images:,}", stage, f"{cost.megabytes:.0f}", f"{cost.seconds:.1f}"]
                    cells += [
                        f"{cost.seconds / images * 1e5:.1f}",
                        *([f"{len(files):,}", f"{size:.1f}"] if files else ["", ""]),
                    ]
                    print(f"| {' | '.join(cells)} |", flush=True)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
