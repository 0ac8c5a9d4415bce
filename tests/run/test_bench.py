"""`dinv bench`: the published shapes, honest clocks, the arithmetic of the ratios, and the whole of it on a toy."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from diffusion_inversion.cli import app
from diffusion_inversion.errors import UsageError
from diffusion_inversion.generator.generator import Generator, initialise
from diffusion_inversion.run.bench.ours import inversion_step, sampling_step
from diffusion_inversion.run.bench.plain import load_plain, plain_inversion_step, plain_sampling_step
from diffusion_inversion.run.bench.real_size import AIMS, Plan, check, projection, ratios
from diffusion_inversion.run.bench.sd14 import ARCHITECTURE, build_sd14, byte_tokenizer
from diffusion_inversion.run.bench.timing import Timed, measure_in_turn


def test_the_architecture_is_the_published_one_to_the_parameter() -> None:
    with torch.device("meta"):
        networks = initialise(ARCHITECTURE, 0)
    counts = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    assert counts == {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}


def test_the_tokenizer_has_clips_size_and_no_unknown_byte() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer("a photo of a çat", padding="max_length", truncation=True).input_ids
    assert len(tokenizer) == 49_408 and tokenizer.model_max_length == 77
    assert len(ids) == 77 and ids[0] == 49_406 and ids[-1] == 49_407
    assert 49_407 not in ids[1:13]


def test_a_folder_is_built_once_and_loads(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusion_inversion.run.bench import sd14

    small = Path(shutil.copytree(toy, tmp_path / "architecture"))
    config = json.loads((small / "text_encoder" / "config.json").read_text())
    config |= {"vocab_size": 600, "max_position_embeddings": 16}
    (small / "text_encoder" / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(sd14, "byte_tokenizer", lambda: byte_tokenizer(600, 16))
    folder = build_sd14(tmp_path / "made" / "sd14", small)
    generator = Generator.load(folder, device="cpu")
    assert json.loads((folder / "model_index.json").read_text())["scheduler"] == ["diffusers", "PNDMScheduler"]
    before = (folder / "model_index.json").stat().st_mtime_ns
    assert build_sd14(folder, small) == folder and (folder / "model_index.json").stat().st_mtime_ns == before
    assert not list((tmp_path / "made").glob("*.partial"))
    spread = torch.stack([p.float().std() for p in generator.unet.parameters() if p.ndim > 1])
    assert float(spread.min()) > 1e-3 and float(spread.max()) < 2
    (tmp_path / "other").mkdir()
    with pytest.raises(UsageError, match="other: exists"):
        build_sd14(tmp_path / "other", small)


def test_clocks_count_work_and_not_waiting() -> None:
    def spin() -> None:
        until = time.process_time() + 0.05
        while time.process_time() < until:
            pass

    order: list[str] = []
    tasks = [
        Timed("spin", lambda: (order.append("spin"), spin()), images=2),
        Timed("sleep", lambda: (order.append("sleep"), time.sleep(0.05))),
        Timed("once", lambda: order.append("once"), repeats=1),
    ]
    measure_in_turn(tasks, 3)
    assert [len(task.cpu) for task in tasks] == [3, 3, 1]
    assert order == ["spin", "sleep", "once", "sleep", "once", "spin", "spin", "sleep", "spin", "sleep"]
    assert 0.024 < tasks[0].cpu_per_image < 0.04
    assert tasks[1].cpu_per_image < 0.02 < 0.05 <= tasks[1].wall_per_image


def known(**seconds: float) -> dict[str, Timed]:
    """Tasks with known CPU seconds for each image; `text` stands for text_encoder."""
    return {name: Timed(name, lambda: None, 2, None, [2 * value], [value]) for name, value in seconds.items()}


def test_ratios_and_projection_are_those_of_the_paper_for_the_papers_times() -> None:
    """Section C.1: 5.28 s, 0.82 s and 0.20 s an image of 100 steps, 5.19 s without the text encoder; 237.6 s for 45."""
    tasks = known(
        plain_invert_128=4.0, ours_invert_128=1.0, plain_sample_128=3.0, ours_sample_128=1.5,
        ours_sample_128_guidance_1=0.75, step_512_text=0.0519, step_512=0.05, step_256=0.0082, step_128=0.002,
        step_256_single=0.01, step_128_single=0.004, invert_256=0.028, invert_128=0.0063, text_encoder=0.09,
        decode_512=0.0, decode_256=0.0, decode_128=0.0,
    )  # fmt: skip
    plan = Plan()
    found = ratios(tasks, plan)
    assert found["invert_step_ratio_128"] == 0.25 and found["sample_step_ratio_128"] == 0.5
    assert found["sample_step_ratio_128_guidance_1"] == 0.25
    assert (found["sampling_ratio_512_256"], found["sampling_ratio_512_128"]) == (6.44, 26.4)
    assert (found["sampling_ratio_512_128_without_text"], found["sampling_ratio_512_128_single"]) == (25.0, 13.2)
    times = projection(tasks, plan)
    assert times["stable_diffusion_512"]["total"] == 237.6
    assert times["inversion_256"] == {"learning": 84.0, "sampling": 36.9, "total": 120.9, "faster": 1.97}
    assert times["inversion_128"] == {"learning": 18.9, "sampling": 9.0, "total": 27.9, "faster": 8.52}


def test_the_steps_learn_vectors_and_nothing_else(toy: Path, loaded: Generator) -> None:
    pipeline = load_plain(toy)
    for unet, steps in (
        (pipeline.unet, [plain_inversion_step(pipeline, 16, 2, 5), plain_sampling_step(pipeline, 16, 2, 3.0)]),
        (loaded.unet, [inversion_step(loaded, 16, 2, 5), sampling_step(loaded, 16, 2, 5, 3.0)]),
    ):
        forwards: list[tuple[int, int]] = []
        hook = unet.register_forward_hook(
            lambda _m, _i, kwargs, _o, seen=forwards: seen.append(tuple(kwargs["encoder_hidden_states"].shape[:2])),
            with_kwargs=True,
        )
        for step in steps:
            step()
        hook.remove()
        assert all(p.grad is None for p in unet.parameters())
        # A step of stage 1 on 2 images; a step of stage 2 with guidance on 4 rows, with all of a prompt's tokens or 5.
        assert forwards == [(2, 5), (4, 16 if unet is pipeline.unet else 5)]


def test_sizes_that_cannot_be_are_named_before_anything_is_made(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for sizes, wrong in (((16, 18), 18), ((0, 16), 0), ((-16, 16), -16)):
        with pytest.raises(UsageError, match=rf"sizes=\[{wrong}\]: not positive multiples of 4"):
            check(toy, Plan(sizes=sizes))
    check(toy, Plan(sizes=(16, 20)))
    with pytest.raises(UsageError, match="ascending"):
        check(toy, Plan(sizes=(32, 16)))
    monkeypatch.setenv("HOME", str(tmp_path))  # below which a checkpoint of 4.3 GB would be made
    refused = CliRunner().invoke(app, ["bench", "real-size", "--sizes", "100,128"])
    assert refused.exit_code == 2 and "sizes=[100]: not positive multiples of 64" in refused.output
    assert list(tmp_path.iterdir()) == []
    config = tmp_path / "vae" / "config.json"
    config.parent.mkdir()
    config.write_text("{}")
    with pytest.raises(UsageError, match=r"vae/config\.json: has no list of block_out_channels"):
        check(tmp_path, Plan())


@pytest.mark.slow
def test_the_command_measures_a_toy(toy: Path) -> None:
    arguments = ["bench", "real-size", "--checkpoint", str(toy), "--sizes", "16,32", "--repeats", "1", "--json"]
    done = CliRunner().invoke(app, [*arguments, "--batch-size", "2", "--dtype", "float32"])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    assert {"invert_step_ratio_16", "sample_step_ratio_16", "sampling_ratio_32_16", "peak_rss_gb"} <= set(found)
    assert 0.05 < found["peak_rss_gb"] < 4  # the libraries alone
    assert all(row["cpu_seconds_per_image"] > 0 for row in found["measured"].values())
    assert {"stable_diffusion_32", "inversion_16"} == set(found["projected_seconds"])
    assert set(AIMS) >= {"invert_step_ratio_128", "sampling_ratio_512_128", "peak_rss_gb"}
    missing = CliRunner().invoke(app, ["bench", "real-size", "--checkpoint", str(toy / "nowhere")])
    assert missing.exit_code == 2 and "build-sd14" in missing.output
