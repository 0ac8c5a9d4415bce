"""Groups in a run: recorded, frozen, the same folds on resume, forgotten with their images, reached by commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import dinv
from harness import INVERT, Bench
from image_files import save

from diffusion_inversion.cli.command import data_settings
from diffusion_inversion.cli.given import Given
from diffusion_inversion.config.settings import DataSettings
from diffusion_inversion.engine.ledger import Ledger
from diffusion_inversion.errors import ConfigMismatchError, DataError
from diffusion_inversion.run import stages as pipeline
from diffusion_inversion.run.forget import forget
from diffusion_inversion.run.images import open_splits
from diffusion_inversion.train.folds import fold_of


@pytest.fixture
def begun(bench: Bench, tmp_path: Path) -> tuple[Path, DataSettings]:
    """A run with vectors of images p<patient>_<number>.png, whose patients a CSV file says."""
    data = tmp_path / "data"
    names = [f"{'ab'[number % 2]}/p{patient}_{number}.png" for patient in range(8) for number in range(2)]
    for name in names:
        save(data / name)
    (tmp_path / "groups.csv").write_text("".join(f"{name},{name[2:4]}\n" for name in names))
    settings = DataSettings(data=str(data), groups=str(tmp_path / "groups.csv"), holdout=0.25)
    splits = open_splits(tmp_path / "run", settings)
    pipeline.invert_stage(tmp_path / "run", splits, bench.generator(), INVERT)
    return tmp_path / "run", settings


def test_the_same_groups_and_folds_on_resume(begun: tuple[Path, DataSettings]) -> None:
    run, settings = begun
    record = json.loads((run / "data.json").read_text())
    assert record["train"]["groups"] == [image_id[2:4] for image_id in record["train"]["ids"]]
    assert not {*record["train"]["groups"]} & {*record["test"]["groups"]} and len({*record["test"]["groups"]}) == 2
    folds = fold_of(open_splits(run).train, 3)
    by_names = settings.model_copy(update={"groups": r"^(p\d)_"})
    again = open_splits(run, by_names).train
    assert fold_of(again, 3) == folds, "said otherwise, they are the same groups"
    assert open_splits(run).train.groups == again.groups
    assert (run / "data.json").read_text() == json.dumps(
        {**record, "source": by_names.model_dump(mode="json")}, indent=1
    ) + "\n"


def test_other_groups_are_refused_by_name(begun: tuple[Path, DataSettings]) -> None:
    run, settings = begun
    with pytest.raises(ConfigMismatchError, match=r"groups: was .*groups\.csv, now None"):
        open_splits(run, settings.model_copy(update={"groups": None}))
    before, listed = (run / "data.json").read_bytes(), Path(str(settings.groups))
    first, *_ = open_splits(run).train.ids
    text = listed.read_text()
    listed.write_text(text.replace(f"{first},{first[2:4]}", f"{first},p9"))
    with pytest.raises(ConfigMismatchError, match=rf"train: {first}: group was {first[2:4]}, now p9"):
        open_splits(run)
    tested = json.loads(before)["test"]["groups"][0]
    listed.write_text(text.replace(f"{first},{first[2:4]}", f"{first},{tested}"))
    with pytest.raises(DataError, match=f"such as {tested} .*the run was parted by other groups"):
        open_splits(run)
    assert (run / "data.json").read_bytes() == before


def test_a_run_that_was_begun_without_groups_has_none(bench: Bench, begun: tuple[Path, DataSettings]) -> None:
    run, settings = begun
    plain, other = settings.model_copy(update={"groups": None}), run.parent / "other"
    pipeline.invert_stage(other, open_splits(other, plain), bench.generator(), INVERT)
    record = json.loads((other / "data.json").read_text())
    del record["source"]["groups"]  # as runs were recorded before groups came
    Ledger(other).commit("data.json", (json.dumps(record) + "\n").encode(), note={"source": record["source"]})
    assert open_splits(other).train.groups == () and open_splits(other, plain).train.groups == ()
    with pytest.raises(ConfigMismatchError, match=r"groups: was None, now .*groups\.csv"):
        open_splits(other, settings)


def test_a_limit_that_grows_leaves_the_test_as_it_is(bench: Bench, begun: tuple[Path, DataSettings]) -> None:
    run, settings = begun
    for seed in range(4):
        few = settings.model_copy(update={"limit": 3, "seed": seed})
        limited = run.parent / f"limited{seed}"
        first = open_splits(limited, few)
        pipeline.invert_stage(limited, first, bench.generator(), INVERT)
        assert open_splits(limited).test.ids == first.test.ids and open_splits(limited).train.ids == first.train.ids
        more = open_splits(limited, few.model_copy(update={"limit": 9}))
        assert more.test.ids == first.test.ids and set(more.train.ids) > set(first.train.ids)


def test_images_that_are_added_go_where_their_group_is(begun: tuple[Path, DataSettings]) -> None:
    run, settings = begun
    splits = open_splits(run)
    trained, tested = splits.train.groups[0], splits.test.groups[0]
    for group in (trained, tested):
        save(Path(settings.data) / "a" / f"{group}_9.png")
    listed = Path(str(settings.groups))
    listed.write_text(listed.read_text() + f"{trained}_9.png,{trained}\n{tested}_9.png,{tested}\n")
    grown = open_splits(run)
    assert set(grown.train.ids) - set(splits.train.ids) == {f"a/{trained}_9.png"}
    assert set(grown.test.ids) - set(splits.test.ids) == {f"a/{tested}_9.png"}


def test_a_forgotten_image_leaves_with_its_group(begun: tuple[Path, DataSettings]) -> None:
    run, _ = begun
    train = open_splits(run).train
    mates = [image_id for image_id, group in zip(train.ids, train.groups, strict=True) if group == train.groups[0]]
    forget(run, mates)
    text = (run / "data.json").read_text()
    record = json.loads(text)
    assert len(record["train"]["groups"]) == len(record["train"]["ids"]) == len(train) - 2
    assert f'"{train.groups[0]}"' not in text
    assert open_splits(run).train.groups == tuple(record["train"]["groups"])


def test_commands_take_groups(begun: tuple[Path, DataSettings], monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = begun
    monkeypatch.chdir(run.parent)
    found = dinv("inspect", "data", "--groups", "groups.csv", "--holdout", "0.25", "--json")
    assert found.exit_code == 0
    summary = json.loads(found.stdout)
    assert (summary["train"]["groups"], summary["test"]["groups"]) == (6, 2)
    noted = dinv("inspect", "data")
    assert "file names suggest 8 groups" in noted.stdout and "--groups '^([^_-]+)[_-]'" in noted.stdout
    none = dinv("run", "data", "--groups", "patient", "--out", "new")
    assert none.exit_code == 2 and none.output.count("\n") == 1
    assert "--groups patient: no file, no column of data (its columns: none), and found in none" in none.output
    assert not Path("new").exists() or not list(Path("new").rglob("*.json"))
    few = dinv("few-shot", "data", "--help-all")
    assert few.exit_code == 0 and "--groups" in few.stdout


def test_a_relative_file_of_groups_holds_in_any_folder(
    begun: tuple[Path, DataSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = begun
    monkeypatch.chdir(run.parent)
    typed = Given(DataSettings, {"data": "data", "groups": "groups.csv"})
    assert data_settings(typed).groups == str(run.parent / "groups.csv")
    (run.parent / "patient").mkdir()
    assert data_settings(Given(DataSettings, {"data": "data", "groups": "patient"})).groups == "patient"
