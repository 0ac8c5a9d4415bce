"""The training loop on a toy task: images that count whatever the batch, and a state that is never of lost numbers."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_pretrain import Killed, killed_at_step_3
from torch import Tensor, nn

from diffusion_inversion.errors import DataError, DinvError, UsageError
from diffusion_inversion.pretrain import loop
from diffusion_inversion.pretrain.checkpoint import Progress
from diffusion_inversion.pretrain.log import TrainingLog, read_log
from diffusion_inversion.pretrain.loop import Budget, PartEnded, Task, fit
from diffusion_inversion.pretrain.optim import MixedPrecision
from diffusion_inversion.pretrain.unet import DenoiserTask, rows_of_each_kind
from diffusion_inversion.pretrain.vae import AutoencoderTask, equivariant


class Toy(Task):
    """A linear layer that learns to give 0 for ones; its loss is NaN at the step `bad`.

    At the calls `short`, counted from 1, there is no memory. `rates` are the learning rates at each call.
    """

    name, columns, validated, decay_share = "toy", ("loss",), ("val",), 0.25
    lack: RuntimeError = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the manual.")

    def __init__(self, batch_size: int = 4, bad: int | None = None, short: tuple[int, ...] = ()) -> None:
        torch.manual_seed(0)
        self.weights = MixedPrecision(nn.ModuleDict({"layer": nn.Linear(4, 4)}), torch.float32, 1e-3, 1e-3, 0.9)
        self.batch_size, self.bad, self.steps = batch_size, bad, 0
        self.short, self.rates = short, list[float]()

    def losses(self) -> tuple[Tensor, Tensor]:
        self.rates.append(float(self.weights.lr))
        if len(self.rates) in self.short:
            raise self.lack
        factor = float("nan") if self.steps == self.bad else 1.0
        self.steps += 1
        loss = self.weights.network["layer"](torch.ones(self.batch_size, 4)).square().mean() * factor
        return loss, loss.detach()[None]

    def validate(self) -> dict[str, float]:
        return {"val": 0.0}


def test_a_budget_counts_images_whatever_the_batches_were() -> None:
    """A call that halved its batch, since memory was short, saw half of the images that its steps would say."""
    budget, half = Budget(samples=10_000), Progress(step=5, samples=5 * 500)
    assert budget.share(half, 500) == budget.share(half, 1000) == 0.25
    assert (budget.steps_left(half, 500), budget.steps_left(half, 1000)) == (15, 8)
    for step in range(13):  # batches of one size: what the steps say
        assert Budget(samples=110).share(Progress(step, step * 10), 10) == min(1.0, step / 11)
        assert Budget(samples=119).steps_left(Progress(step, step * 10), 10) == max(0, 11 - step)
    assert Budget(samples=3).share(Progress(1, 10), 10) == 1.0, "one step at least"
    assert Budget(minutes=1).steps_left(half, 10) is None


def test_a_run_whose_batches_were_halved_sees_all_of_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    with pytest.raises(PartEnded):
        fit(Toy(batch_size=2), tmp_path, Budget(samples=24), part_ends=0.0)
    done = fit(Toy(batch_size=4), tmp_path, Budget(samples=24))
    assert (done.step, done.samples) == (7, 26), "one batch of 2, six of 4: the last reaches beyond"
    assert [int(record["samples"]) for record in read_log(tmp_path / "toy.log.tsv")][-2:] == [22, 26]


@pytest.mark.parametrize("ends", ["in time", "by the clock"])
def test_the_state_that_an_error_says_is_kept_is_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    """Numbers run away between two looks at the loss, and a save, or the end of a part, comes before the second."""
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    with (
        monkeypatch.context() as patch,
        pytest.raises(DinvError, match=r"no longer finite at step 51\. The"),
    ):
        task = Toy(bad=50)
        if ends == "by the clock":
            patch.setattr(loop.time, "monotonic", lambda: float(task.steps > 50))
        fit(task, tmp_path, Budget(samples=300), part_ends=1.0 if ends == "by the clock" else None)
    assert all(bool(t.float().isfinite().all()) for t in load_file(tmp_path / "toy.state.safetensors").values())
    assert fit(Toy(), tmp_path, Budget(samples=300)).step == 75


def test_a_state_that_learned_other_latents_is_refused(tmp_path: Path) -> None:
    """One that does not say whose it learned, of an earlier version, is taken and says so from then on."""
    fit(Toy(), tmp_path, Budget(samples=4))
    fit(Toy(), tmp_path, Budget(samples=8), vae="one")
    fit(Toy(), tmp_path, Budget(samples=12), vae="one")
    before = (tmp_path / "toy.state.safetensors").read_bytes()
    for samples in (12, 16):
        with pytest.raises(UsageError, match=r"toy\.state\.safetensors: learned the latents of another autoencoder"):
            fit(Toy(), tmp_path, Budget(samples=samples), vae="other")
    assert (tmp_path / "toy.state.safetensors").read_bytes() == before


@pytest.mark.parametrize("short", [(1,), (2,), (3, 4)], ids=str)
def test_a_batch_without_memory_is_halved_and_the_rates_by_the_square_root(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], short: tuple[int, ...]
) -> None:
    whole, task = Toy(batch_size=8), Toy(batch_size=8, short=short)
    fit(whole, tmp_path / "whole", Budget(samples=32))
    capsys.readouterr()
    done = fit(task, tmp_path / "short", Budget(samples=32))
    halvings, before = len(short), short[0] - 1  # steps of the whole batch
    assert task.batch_size == 8 // 2**halvings
    assert done.samples == 32 and done.step == before + (32 - 8 * before) // task.batch_size
    assert [line for line in capsys.readouterr().err.splitlines() if "memory" in line] == [
        f"toy: out of memory, batches of {size} from now on" for size in (4, 2)[:halvings]
    ]
    # At the same place of the warm-up, the step that is done again has the lower rate already.
    factor = 0.5 ** (halvings / 2)
    assert task.rates[: before + 1] == whole.rates[: before + 1]
    assert task.rates[before + halvings] == pytest.approx(factor * whole.rates[before])
    assert task.weights._peaks == pytest.approx((1e-3 * factor, 1e-3 * factor))


def test_where_the_smallest_batch_has_no_memory_one_line_says_so(tmp_path: Path) -> None:
    for least, message in ((1, "a batch of 1, the"), (4, "a batch of 4, the")):
        task = Toy(batch_size=8, short=tuple(range(9)))
        task.least_batch = least
        with pytest.raises(DinvError, match=rf"toy: out of memory with {message}.*2\.00 GiB\.\)") as caught:
            fit(task, tmp_path / str(least), Budget(samples=32))
        assert "\n" not in str(caught.value) and task.batch_size == least


def test_other_errors_than_those_of_memory_change_nothing(tmp_path: Path) -> None:
    task = Toy(batch_size=8, short=(1,))
    task.lack = RuntimeError("shapes do not fit")
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        fit(task, tmp_path, Budget(samples=32))
    assert task.batch_size == 8 and task.weights._peaks == (1e-3, 1e-3)


def test_the_smallest_batch_of_a_task_is_the_first_with_rows_of_every_kind() -> None:
    """The mean of no rows is no number."""
    for size in range(1, 20):
        latents, images = torch.zeros(size, 2, 4, 4), torch.zeros(size, 3, 8, 8)
        kinds = [len(given) for given, _ in equivariant(latents, images)]
        assert (min(kinds) > 0) == (size >= AutoencoderTask.least_batch)
        assert (min(rows_of_each_kind(size)) > 0) == (size >= DenoiserTask.least_batch)
    assert rows_of_each_kind(1024) == (614, 307, 103) and rows_of_each_kind(5) == (3, 1, 1)


def test_a_log_that_was_cut_goes_on_as_if_it_had_not_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    budget, killed = Budget(samples=20), tmp_path / "killed"
    fit(Toy(), tmp_path / "whole", budget)
    with pytest.raises(PartEnded):
        fit(Toy(), killed, budget, part_ends=0.0)  # its state is of step 1
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "trapezoid", killed_at_step_3)
        fit(Toy(), killed, budget)
    text = (killed / "toy.log.tsv").read_text()
    *kept, last = text.splitlines(keepends=True)
    assert [line.split("\t")[1] for line in (*kept[1:], last)] == ["1", "2", "3"]

    def results(folder: Path) -> list[dict[str, str]]:
        records = read_log(folder / "toy.log.tsv")
        return [{name: record[name] for name in ("step", "samples", "lr", "loss", "val")} for record in records]

    whole = results(tmp_path / "whole")
    assert [record["step"] for record in whole] == ["1", "2", "3", "4", "5"]
    for length in (1, 25, len(last) // 2, len(last) - 2, len(last) - 1):
        cut = Path(shutil.copytree(killed, tmp_path / f"cut-{length}"))
        (cut / "toy.log.tsv").write_text("".join(kept) + last[:length])
        assert results(cut) == whole[:2]
        fit(Toy(), cut, budget)
        assert results(cut) == whole
    (killed / "toy.log.tsv").write_bytes("".join(kept).encode() + b"\0" * len(last))  # after a power cut
    assert results(killed) == whole[:2]
    (killed / "toy.log.tsv").write_text(text.replace(kept[-1], kept[-1].rpartition("\t")[0] + "\n"))
    with pytest.raises(DataError, match=r"toy\.log\.tsv, line 3: 7 fields, not the 8") as caught:
        fit(Toy(), killed, budget)
    assert "\n" not in str(caught.value)


def test_a_record_is_on_disk_before_a_state_can_be_of_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / "toy.log.tsv", list[int]()
    log = TrainingLog(path, ("loss",), 0, "cpu", echo=False)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
        log.write(1, 4, 0.0, loss=0.5)
    assert synced == [path.stat().st_size] and read_log(path)[0]["loss"] == "0.50000"
