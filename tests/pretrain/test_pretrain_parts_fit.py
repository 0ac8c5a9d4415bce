"""What the stages leave fits together: a denoiser or a decoder is never paired with another autoencoder's latents."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffusion_inversion.errors import UsageError
from diffusion_inversion.pretrain import recipe
from diffusion_inversion.pretrain.corpus import Corpus
from diffusion_inversion.pretrain.loop import Budget
from diffusion_inversion.pretrain.networks import Setting

NAMES = ("goldfish", "tabby cat")
ONE, TWO = Budget(samples=4), Budget(samples=8)  # steps


@pytest.mark.usefixtures("small")
def test_an_autoencoder_that_is_trained_on_is_not_paired_with_what_learned_its_latents_before(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = Setting(size=32, folder=tmp_path, device=torch.device("cpu"), batch_size=4, vae_batch_size=4)
    mini = tmp_path / "mini"

    def learn() -> None:
        recipe.run_latents(corpus, corpus, setting)
        recipe.run_unet(corpus, corpus, setting, ONE)

    recipe.run_vae(corpus, corpus, setting, ONE)
    recipe.run_decoder(corpus, corpus, setting, ONE)
    learn()
    recipe.export(NAMES, setting)
    with monkeypatch.context() as patch:
        patch.setattr(recipe, "normalise_latents", None)  # not called: the bits stay, on CUDA too
        recipe.run_vae(corpus, corpus, setting, ONE)
    assert_a_killed_export_changes_nothing(mini, setting)

    recipe.run_vae(corpus, corpus, setting, TWO)
    before = (mini / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    recipe.run_latents(corpus, corpus, setting)
    for name, stage in (
        ("unet.state", lambda: recipe.run_unet(corpus, corpus, setting, TWO)),
        ("decoder.state", lambda: recipe.run_decoder(corpus, corpus, setting, TWO)),
        ("part-0", lambda: recipe.export(NAMES, setting)),
    ):
        with pytest.raises(UsageError, match=rf"{name}\.safetensors: learned the latents of another autoencoder"):
            stage()
    (tmp_path / "unet.state.safetensors").unlink()
    learn()
    with pytest.raises(UsageError, match=r"vae-refined\.safetensors: sharpened for another encoder"):
        recipe.export(NAMES, setting)
    assert (mini / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == before
    (tmp_path / recipe.REFINED_VAE).unlink()
    recipe.export(NAMES, setting)
    exported, trained = (
        load_file(mini / "vae" / "diffusion_pytorch_model.safetensors"),
        load_file(tmp_path / "vae.safetensors"),
    )
    assert all(torch.equal(exported[key], trained[key]) for key in trained)


def assert_a_killed_export_changes_nothing(mini: Path, setting: Setting) -> None:
    """And one that ends leaves out what was learned for the weights before, and keeps what it did not write."""
    (mini / "note.txt").write_text("mine")
    (mini / "timesteps.json").write_text("{}")

    def content() -> dict[str, bytes]:
        return {str(path.relative_to(mini)): path.read_bytes() for path in mini.rglob("*") if path.is_file()}

    before = content()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(TypeError):
        patch.setattr(recipe, "write_card", None)
        recipe.export(NAMES, setting)
    assert content() == before and not list(mini.parent.glob(".partial-*"))
    recipe.export(NAMES, setting)
    assert content().keys() == before.keys() - {"timesteps.json"}
