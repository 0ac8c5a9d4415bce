from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from diffusion_inversion.generator.adapter import Adapter
from diffusion_inversion.pretrain import loop, networks, unet
from diffusion_inversion.pretrain.corpus import Corpus

NAMES = ("goldfish", "tabby cat")
SIZE = 32  # the smaller of the two architectures
WIDTH = 32  # of tokens, where the architecture is narrow


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    images = torch.randint(256, (16, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Corpus(images.repeat_interleave(4, 2).repeat_interleave(4, 3), torch.arange(16) % 2, NAMES)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe's config files, those of the smaller size with an eighth of its channels."""
    folder = Path(shutil.copytree(networks.ARCHITECTURES, tmp_path_factory.mktemp("narrow") / "architecture"))
    for name, changes in {
        "vae": {"block_out_channels": [8, 8, 16], "norm_num_groups": 4},
        "unet": {"block_out_channels": [16, 32], "norm_num_groups": 4, "cross_attention_dim": WIDTH},
        "text_encoder": {
            "hidden_size": WIDTH,
            "projection_dim": WIDTH,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
        },
    }.items():
        path = folder / str(SIZE) / name / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.fixture
def small(narrow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thin networks, validation and logs at every step of a few images."""
    monkeypatch.setattr(networks, "ARCHITECTURES", narrow)
    monkeypatch.setattr(Adapter.__init__, "__defaults__", (5, WIDTH, 16))  # tokens, width, hidden
    monkeypatch.setattr(unet, "VALIDATION_IMAGES", 4)
    monkeypatch.setattr(unet, "VALIDATION_DRAWS", 1)
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
