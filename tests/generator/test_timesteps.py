"""Learned timesteps: what ships with mini, what is refused, and that samplers step where they are told to."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from toy import MINI_SCHEDULER, SD14_SCHEDULER, WIDTH

from diffusion_inversion.config.sampling import SchedulerName
from diffusion_inversion.errors import UsageError
from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.generator.schedulers import make_scheduler
from diffusion_inversion.generator.timesteps import FILE, read_timesteps
from diffusion_inversion.sample.denoising import denoise

GRID = (981, 640, 333, 52)
TAKE_THEM = ("dpm++", "euler")


def test_mini_ships_with_timesteps_for_its_weights(capsys: pytest.CaptureFixture[str]) -> None:
    mini = Generator.load("mini", device="cpu")
    assert not capsys.readouterr().err
    assert {4, 6} <= mini.learned["dpm++"].keys()
    for count in mini.learned["dpm++"]:
        timesteps = mini.learned_timesteps("dpm++", count)
        assert len(timesteps) == count and timesteps[-1] >= 0 and timesteps[0] < mini.training_timesteps
        assert all(later < earlier for earlier, later in pairwise(timesteps))
        assert mini.scheduler("dpm++", count, timesteps).timesteps.tolist() == list(timesteps)
    with pytest.raises(UsageError, match=r"no timesteps for 5 steps of dpm\+\+ \(there are: dpm\+\+ 4,6"):
        mini.learned_timesteps("dpm++", 5)
    with pytest.raises(UsageError, match=r"no timesteps for 6 steps of ddim \(there are: dpm"):
        mini.learned_timesteps("ddim", 6)


def test_fewer_learned_steps_end_nearer_to_where_many_lead() -> None:
    """From start noises and vectors that nothing was learned on: mini's own guidance-free tokens of class names."""
    mini = Generator.load("mini", device="cpu", dtype="float32")
    stream = torch.Generator().manual_seed(5)
    noise = torch.randn(6, 16, 8, 8, generator=stream)
    names = ("goldfish", "school bus", "beach wagon", "jellyfish", "lemon", "pizza")
    tokens = mini.text_tokens([f"a photo of a {name}" for name in names])

    def end(steps: int, timesteps: tuple[int, ...] | None = None) -> torch.Tensor:
        return denoise(mini, noise, tokens, tokens, torch.ones(6), "dpm++", steps, timesteps=timesteps)

    many = end(50)
    for steps in (4, 6):
        plain, learned = (
            (found - many).square().mean((1, 2, 3)).sqrt().mean()
            for found in (end(steps), end(steps, mini.learned_timesteps("dpm++", steps)))
        )
        assert learned < plain, steps


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_custom_timesteps_equal_the_pipelines(generator: Generator, checkpoint: Path, guidance_scale: float) -> None:
    """diffusers' own pipeline takes `timesteps` too."""
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    stream = torch.Generator().manual_seed(3)
    noise = torch.randn(2, generator.latent_channels, 8, 8, generator=stream)
    c, u = torch.randn(2, 2, 5, WIDTH, generator=stream)
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config, algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero"
    )
    expected = pipeline(
        prompt_embeds=c, negative_prompt_embeds=u, latents=noise, timesteps=list(GRID), output_type="latent",
        guidance_scale=guidance_scale,
    ).images  # fmt: skip
    ours = denoise(generator, noise, c, u, torch.full((2,), guidance_scale), "dpm++", len(GRID), timesteps=GRID)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(ours, denoise(generator, noise, c, u, torch.ones(2), "dpm++", len(GRID)), atol=1e-2)


@pytest.mark.parametrize("config", [SD14_SCHEDULER, MINI_SCHEDULER], ids=["sd14", "mini"])
@pytest.mark.parametrize("name", get_args(SchedulerName))
def test_a_sampler_steps_where_it_is_told_or_refuses(config: dict[str, Any], name: SchedulerName) -> None:
    if name in TAKE_THEM:
        assert make_scheduler(name, config, len(GRID), GRID).timesteps.tolist() == list(GRID)
        return
    with pytest.raises(UsageError, match=f"scheduler={name}: takes no timesteps") as caught:
        make_scheduler(name, config, len(GRID), GRID)
    assert "\n" not in str(caught.value)


def record(**changes: Any) -> dict[str, Any]:
    return {"generator": "0" * 64, "timesteps": {"dpm++": {"4": list(GRID)}}} | changes


def test_only_numbers_of_the_same_weights_are_used(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "toy"))
    plain = Generator.load(folder, device="cpu")
    (folder / FILE).write_text(json.dumps(record()))
    other = Generator.load(folder, device="cpu")
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "learned for other weights (000000000000" in said
    assert other.learned == {} and other.hash == plain.hash, "the file is no part of the weights"
    with pytest.raises(UsageError, match=r"no timesteps for 4 steps of dpm\+\+ \(there are: none\)"):
        other.learned_timesteps("dpm++", 4)
    (folder / FILE).write_text(json.dumps(record(generator=plain.hash)))
    assert Generator.load(folder, device="cpu").learned_timesteps("dpm++", 4) == GRID
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    "timesteps",
    [[52, 333, 640, 981], [981, 640, 640, 52], [1000, 640, 333, 52], [981, 640, 333, -1], [981, 640, 333], []],
    ids=["ascending", "twice", "beyond the schedule", "below it", "too few", "none"],
)
def test_timesteps_that_cannot_be_are_refused_by_their_file(tmp_path: Path, timesteps: list[int]) -> None:
    (tmp_path / FILE).write_text(json.dumps(record(timesteps={"dpm++": {"4": timesteps}})))
    with pytest.raises(
        UsageError, match=r"timesteps\.json: timesteps of 4 steps are not 4 that descend within 0\.\.999"
    ):
        read_timesteps(tmp_path, "0" * 64, 1000)


@pytest.mark.parametrize("content", ["[]", "{}", '{"generator": "0", "timesteps": {"mine": {}}}', "{"])
def test_what_is_no_such_record_is_refused(tmp_path: Path, content: str) -> None:
    assert read_timesteps(tmp_path, "0" * 64, 1000) == {}
    (tmp_path / FILE).write_text(content)
    with pytest.raises(UsageError, match=r"timesteps\.json"):
        read_timesteps(tmp_path, "0" * 64, 1000)
