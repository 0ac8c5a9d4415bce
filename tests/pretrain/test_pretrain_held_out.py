"""The stage `figures` after a toy training: the held-out losses of the card are those that the training logged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from test_pretrain import CPU, NAMES, setting

from diffusion_inversion.generator.generator import noise_schedule
from diffusion_inversion.pretrain import figures, latents, networks, quality, recipe, unet
from diffusion_inversion.pretrain.corpus import Corpus
from diffusion_inversion.pretrain.log import read_log
from diffusion_inversion.pretrain.loop import Budget

ROUNDED = 1e-4  # of a loss, relative: what float16 weights, and a log of five decimals, leave of it


@pytest.mark.usefixtures("small")
def test_the_losses_of_what_is_shipped_are_those_of_the_last_record(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "INFERENCE_STEPS", 1)  # a constant: two samples are looked at by nobody here
    for name in ("LR", "LR_VECTORS"):
        monkeypatch.setattr(unet, name, 1.0)  # so that the average of the weights is soon another than the last ones
    rows, toy = corpus.labels.new_tensor(range(16)), setting(tmp_path)
    train, held_out = corpus.rows(rows[:12]), corpus.rows(rows[12:])
    recipe.run_vae(train, held_out, toy, Budget(samples=4))
    recipe.run_unet(train, held_out, toy, Budget(samples=24))
    recipe.export(NAMES, toy)
    recipe.run_figures(NAMES, held_out, toy, figures.Measured(amounts=figures.Amounts(samples=2, autoencoded=2)))

    found = json.loads((tmp_path / recipe.HELD_OUT_LOSSES).read_text())
    assert json.loads((tmp_path / "mini" / recipe.HELD_OUT_LOSSES).read_text()) == found
    last = read_log(tmp_path / "unet.log.tsv")[-1]
    logged = {name: float(last[name]) for name in unet.DenoiserTask.validated}
    assert found == pytest.approx(logged, rel=ROUNDED)

    # The same from the state of the training: the averaged weights, rounded as they are shipped, give these numbers.
    cache = latents.cache_views(
        networks.load_vae(toy), held_out, tmp_path / "again.safetensors", latents.HELD_OUT_VIEWS, device=CPU
    )
    state = load_file(tmp_path / "unet.state.safetensors")
    again = {}
    for weights in ("ema", "model"):
        model, prefix = networks.new_denoiser(toy), f"module/{weights}/"
        model.load_state_dict({key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)})
        model.half().float()
        tokenizer, alphas = networks.load_tokenizer(NAMES, toy), noise_schedule(toy.architecture)
        again[weights] = unet.recomputed_losses(model, alphas, tokenizer, cache, NAMES)
    assert found == pytest.approx(again["ema"], rel=1e-6)
    assert min(abs(again["model"][name] / logged[name] - 1) for name in logged) > 3 * ROUNDED  # others would be seen
