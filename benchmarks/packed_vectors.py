"""What keeping vectors in fewer bytes costs: the loss on the evaluation bank, and the label that reconstructions show.

    python benchmarks/packed_vectors.py --train TRAIN --test TEST --images 200

`mini` learns `--images` of TRAIN. Each dtype's vectors are those of float32, packed and unpacked: their mean loss on
the fixed bank of stage 1 with its difference to float32, how far their reconstructions are from float32's in PSNR, and
how many of them a judge gives their source's label: a logistic regression on Lite0 features of other images of TRAIN,
whose accuracy on TEST is printed. Prints Markdown.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict, replace

import torch

from diffusion_inversion.config.sampling import SampleSettings
from diffusion_inversion.config.settings import InvertSettings
from diffusion_inversion.data.datasets import load_images
from diffusion_inversion.data.images import resize, to_model_range
from diffusion_inversion.generator.features import load_lite0, profile
from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.invert.inversion import invert
from diffusion_inversion.invert.objective import EvaluationBank
from diffusion_inversion.invert.packing import BYTES, DTYPES, SCALE_BYTES, pack, unpack
from diffusion_inversion.measure.copies.said import share_of
from diffusion_inversion.measure.copies.shares import share
from diffusion_inversion.sample.sampling import reconstruct

IMAGENET = 1_281_167 * 3 * 5  # tokens of ImageNet's training images at three kept steps
WIDTH = 768


def main() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument(
        "--judged-by", type=int, default=2000, help="images that the judge learns from, and is tested on"
    )
    given = parser.parse_args()
    lite0 = load_lite0()

    def described(images: torch.Tensor, side: int) -> torch.Tensor:
        same = images if images.shape[-1] == side else resize(images, side)
        return torch.cat([profile(lite0, to_model_range(part)) for part in same.split(100)])

    images = load_images(given.train, limit=given.images)
    generator, settings = Generator.load("mini", device="cpu"), InvertSettings()
    others = load_images(given.train, limit=given.judged_by + given.images)
    others = others.subset([row for row, image_id in enumerate(others.ids) if image_id not in {*images.ids}])
    tested = load_images(given.test, limit=given.judged_by)
    judge = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, max_iter=500))
    judge.fit(described(others.images, images.size), others.labels)
    accuracy = judge.score(described(tested.images, images.size), tested.labels)
    with tempfile.TemporaryDirectory() as folder:
        vectors = invert(images, generator, folder, settings)
    row_of = {image_id: row for row, image_id in enumerate(images.ids)}
    ordered = images.subset([row_of[image_id] for image_id in vectors.ids])
    pixels = to_model_range(ordered.resized(generator.resolution).images)
    with torch.no_grad():
        encoded = generator.encode(pixels)
    bank = EvaluationBank.draw(generator, encoded, ordered.ids, settings)
    print(f"{len(images)} images, {settings.steps} steps; judge {100 * accuracy:.1f} % on {len(tested)} test images\n")
    print("| kept as | bytes a token | ImageNet, 3 steps | loss on the bank | against float32 | PSNR to it | label |")
    print("|---|---|---|---|---|---|---|")
    plain_loss, plain_images = None, None
    for dtype in DTYPES:
        kept = replace(vectors, vectors=unpack(pack(vectors.vectors, dtype)))
        loss = bank.loss(generator, kept.at().to(generator.device), 100)
        drawn = reconstruct(kept, generator, SampleSettings())
        plain_loss = loss if plain_loss is None else plain_loss
        plain_images = drawn if plain_images is None else plain_images
        off, error = loss - plain_loss, (drawn.float() - plain_images.float()).square().mean()
        psnr = "-" if error == 0 else f"{10 * torch.log10(255**2 / error):.1f} dB"
        right = torch.from_numpy(judge.predict(described(drawn, images.size))) == ordered.labels
        each = WIDTH * BYTES[dtype] + (SCALE_BYTES if dtype == "int8" else 0)
        print(
            f"| {dtype} | {each:,} | {IMAGENET * each / 1e9:.1f} GB | {loss.mean():.4f} | "
            f"{off.mean():+.5f} ± {off.std() / len(off) ** 0.5:.5f} | {psnr} | {share_of(asdict(share(right)))} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
