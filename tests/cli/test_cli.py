"""The command as a user meets it: speed of help, exit codes, JSON, the whole job on a toy checkpoint."""

from __future__ import annotations

import fcntl
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import dinv
from PIL import Image
from toy import MINI_SCHEDULER, build_checkpoint, toy_images

from diffusion_inversion.cli import app
from diffusion_inversion.config import sampling, settings, training


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 2 classes with train/ and test/."""
    root = tmp_path_factory.mktemp("data")
    images = toy_images(24)
    for row, image in enumerate(images.images):
        part = "train" if row < 12 else "test"
        path = root / part / images.class_names[int(images.labels[row])] / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return root


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("toy") / "toy", MINI_SCHEDULER)


def small(toy: Path) -> list[object]:
    return ["--generator", toy, "--dtype", "float32", "--steps", 2, "--variants", 2, "--inference-steps", 2,
            "--train-steps", 3, "--train-batch-size", 4, "--init", "random"]  # fmt: skip


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    command = [sys.executable, "-X", "importtime", "-c", "from diffusion_inversion.cli import main; main()", "--help"]
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
    for heavy in ("torch", "numpy", "diffusers", "transformers", "datasets", "pydantic", "PIL"):
        assert not re.search(rf"\| +{heavy}$", done.stderr, re.MULTILINE), heavy
    assert "invert" in done.stdout and "demo" in done.stdout
    assert min(seconds) < 1.0  # 0.5 s on an idle machine; import tracing and parallel tests slow it here


def test_the_whole_job_then_nothing_twice(data: Path, toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = dinv("run", data, "--out", out, "--json", *small(toy))
    assert first.exit_code == 0, first.output
    summary = json.loads(first.stdout)
    assert summary["ok"] and set(summary["arms"]) == {"real", "synthetic", "real+synthetic"}
    assert summary["verdict"]["outcome"] in ("helps", "harms", "does not help", "not enough evidence")
    expected = {"data.json", "run.json", "report.html", "invert.config.json", "sample.config.json", "train.config.json",
                "reconstructions.safetensors", "manifest.jsonl", "embeddings", "synthetic", "classifiers"}  # fmt: skip
    assert expected <= {path.name for path in out.iterdir()}
    assert len(list((out / "synthetic").rglob("*.png"))) == 24
    record = json.loads((out / "run.json").read_text())
    assert record["data"]["n_train"] == 12 and record["data"]["n_test"] == 12
    assert record["arms"]["real"]["n"] == 5
    page = (out / "report.html").read_text()
    assert record["verdict"]["outcome"] in page and "data:image/png;base64" in page
    before = {path: path.stat().st_mtime_ns for path in (out / "synthetic").rglob("*.png")}
    again = dinv("run", data, "--out", out, "--json", *small(toy))
    assert json.loads(again.stdout)["arms"] == summary["arms"]
    assert before == {path: path.stat().st_mtime_ns for path in (out / "synthetic").rglob("*.png")}


def test_the_stages_one_by_one_equal_the_whole_job(data: Path, toy: Path, tmp_path: Path) -> None:
    whole, steps = tmp_path / "whole", tmp_path / "steps"
    assert dinv("run", data, "--out", whole, *small(toy)).exit_code == 0
    options = ["--generator", toy, "--dtype", "float32"]
    done = dinv("invert", data, "--out", steps, *options, "--steps", 2, "--init", "random")
    assert done.exit_code == 0 and "dinv sample" in done.stdout
    assert dinv("sample", steps, "--dtype", "float32", "--variants", 2, "--inference-steps", 2).exit_code == 0
    assert dinv("train", steps, "--train-steps", 3, "--train-batch-size", 4).exit_code == 0
    ours = {p.relative_to(whole): p.read_bytes() for p in (whole / "synthetic").rglob("*.png")}
    theirs = {p.relative_to(steps): p.read_bytes() for p in (steps / "synthetic").rglob("*.png")}
    assert ours == theirs
    arms = [json.loads((folder / "run.json").read_text())["arms"] for folder in (whole, steps)]
    assert arms[0] == arms[1]


def test_restart_replaces_a_stage_and_what_follows_it(data: Path, toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert dinv("run", data, "--out", out, *small(toy)).exit_code == 0
    shards = {path: path.read_bytes() for path in (out / "embeddings").glob("*.safetensors")}
    sampling = ["--dtype", "float32", "--variants", 1, "--inference-steps", 3]
    refused = dinv("sample", out, *sampling)
    assert refused.exit_code == 5 and "inference_steps: was 2, now 3" in refused.output
    assert len(list((out / "synthetic").rglob("*.png"))) == 24
    assert dinv("sample", out, *sampling, "--restart").exit_code == 0
    assert len(list((out / "synthetic").rglob("*.png"))) == 12
    assert not (out / "classifiers").exists() and not (out / "report.html").exists()
    assert dinv("train", out, "--train-steps", 2, "--train-batch-size", 4).exit_code == 0
    assert (out / "report.html").is_file()
    assert shards and all(path.read_bytes() == content for path, content in shards.items())


def test_fewer_variants_train_on_fewer(data: Path, toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert dinv("invert", data, "--out", out, *small(toy)[:6], "--init", "random").exit_code == 0
    for variants in (3, 1):
        options = ["--dtype", "float32", "--variants", variants, "--inference-steps", 2]
        assert json.loads(dinv("sample", out, *options, "--json").stdout)["images"] == 12 * variants


def test_exit_codes(data: Path, toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert dinv("invert").exit_code == 2
    unknown = dinv("invert", "no-such-data", "--out", out, "--json", *small(toy)[:4])
    assert unknown.exit_code == 2 and json.loads(unknown.stdout)["exit_code"] == 2
    assert dinv("invert", data, "--out", out, "--generator", "nowhere").exit_code == 2
    bad = dinv("invert", data, "--out", out, *small(toy)[:4], "--steps", -1)
    assert bad.exit_code == 2 and "--steps -1: give at least 0" in bad.output
    for name in ("a", "b"):
        (tmp_path / "broken" / name).mkdir(parents=True)
        Image.new("RGB", (16, 16), "red" if name == "a" else "blue").save(tmp_path / "broken" / name / "fine.png")
    (tmp_path / "broken" / "a" / "x.png").write_bytes(b"no image")
    broken = dinv("invert", tmp_path / "broken", "--out", out, *small(toy)[:4])
    assert broken.exit_code == 4 and "x.png" in broken.output
    options = [*small(toy)[:4], "--init", "random", "--out", out]
    assert dinv("invert", data, "--steps", 1, *options).exit_code == 0
    changed = dinv("invert", data, "--steps", 2, *options)
    assert changed.exit_code == 5 and "steps: was 1, now 2" in changed.output
    fewer = dinv("invert", data, "--steps", 1, "--limit", 4, *options)
    assert fewer.exit_code == 5 and "gone, or not selected any more" in fewer.output
    with (out / ".lock").open() as held:  # as another process would hold it
        fcntl.flock(held, fcntl.LOCK_EX)
        assert dinv("invert", data, "--steps", 1, *options).exit_code == 6


def test_generators_prints_the_folder_of_mini() -> None:
    from diffusion_inversion.generator.checkpoints import MINI

    assert dinv("generators", "mini", "--path").stdout.strip() == str(MINI)
    assert "mini" in json.loads(dinv("generators", "--json").stdout)["generators"]
    assert dinv("generators", "unheard/of").exit_code == 2


@pytest.mark.parametrize(
    ("command", "model"),
    [("invert", settings.InvertSettings), ("sample", sampling.SampleSettings), ("train", training.TrainSettings)],
)
def test_help_states_the_real_defaults(command: str, model: type[settings.Settings]) -> None:
    """Each option, under the name it has always had, with the default of its field."""
    text = " ".join(dinv(command, "--help-all").stdout.split())
    renamed = {"steps": "train-steps"} if command == "train" else {}
    renamed |= {"learning_rate": f"{command}-learning-rate", "batch_size": f"{command}-batch-size"}
    renamed |= {"resolution": "sample-resolution"} if command == "sample" else {}
    for name, field in model.model_fields.items():
        option = re.search(rf"--{renamed.get(name, name.replace('_', '-'))} (.*?)(?= --[\w-]+ [</]|$)", text)
        if option is None:
            assert name in ("weight_decay", "eval_draws", "momentum"), f"{command} has no option for {name}"
            continue
        default = field.default
        if isinstance(default, tuple):
            default = ",".join(f"{v:g}" if isinstance(v, float) else str(v) for v in default)
        elif isinstance(default, float):
            default = f"{default:g}"
        if default is True:
            assert f"--{name.replace('_', '-')} / --no-{name.replace('_', '-')}" in text and "[default: on]" in text
        elif default is not False and default not in (None, "", ()):
            said = re.search(rf"\[default: {re.escape(str(default))}[;\]]", option.group(1))
            assert said, f"--{name}: {option.group(1)}"


def test_help_of_sample_states_the_defaults_of_prompts() -> None:
    text = " ".join(dinv("sample", "--help-all").stdout.split())
    prompts = sampling.PromptSettings()
    for option, default in (
        ("guidance-scales", f"{prompts.guidance_scales[0]:g}"), ("generator", "mini"), ("image-size", "the resolution"),
    ):  # fmt: skip
        found = re.search(rf"--{option} (.*?)(?= --\w[\w-]* <)", text)
        assert found and f"with --prompts: {default}]" in found[1], (option, found)
    assert "--prompts" not in " ".join(dinv("run", "--help-all").stdout.split())


def test_run_has_every_option_of_the_stages() -> None:
    from typer.main import get_command

    def options(name: str) -> set[str]:
        command: Any = get_command(app)
        params = command.commands[name].make_context(name, [], resilient_parsing=True).command.params
        return {option for one in params for option in one.opts if option.startswith("--")}

    stages = options("invert") | options("sample") | options("train")
    assert stages - options("run") == {"--prompts", "--classes-of", "--restart"}


@pytest.mark.slow
def test_the_group_size_of_run_is_that_of_both_stages(data: Path, toy: Path, tmp_path: Path) -> None:
    def recorded(out: Path, stage: str) -> dict[str, Any]:
        return dict(json.loads((out / f"{stage}.config.json").read_text())["settings"])

    def run(out: str, *options: object) -> Any:
        return dinv("run", data, "--out", tmp_path / out, *small(toy), "--arms", "real", "--seeds", 0, *options)

    both = run("both", "--grouping", "joint", "--joint-batch-size", 2, "--group-size", 3, "--partner", "reference",
               "--me-ada-every", 1, "--me-ada-steps", 1)  # fmt: skip
    assert both.exit_code == 0, both.output
    invert, sample, train = (recorded(tmp_path / "both", stage) for stage in ("invert", "sample", "train"))
    assert (invert["grouping"], invert["group_size"], invert["joint_batch_size"]) == ("joint", 3, 2)
    assert (sample["partner"], sample["group_size"]) == ("reference", 3)
    assert (train["me_ada_every"], train["me_ada_steps"]) == (1, 1)
    one = run("one", "--grouping", "joint", "--joint-batch-size", 2, "--group-size", 3)
    assert one.exit_code == 0, one.output
    assert recorded(tmp_path / "one", "invert")["group_size"] == 3
    assert recorded(tmp_path / "one", "sample")["group_size"] == 100
    neither = run("neither", "--group-size", 3)
    assert (
        neither.exit_code == 2
        and "--group-size 3: --unconditional mean and --partner same-class have" in neither.output
    )
    assert run("neither", "--partner", "reference", "--group-size", 0).exit_code == 2


def test_results_do_not_depend_on_the_number_of_threads(data: Path, toy: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            out = tmp_path / str(count)
            assert dinv("invert", data, "--out", out, *small(toy)[:4], "--steps", 1, "--init", "random").exit_code == 0
            from diffusion_inversion.invert.embeddings import read_embeddings

            found.append(read_embeddings(out).vectors)
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
