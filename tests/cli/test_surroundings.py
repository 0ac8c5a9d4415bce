"""Commands in processes that were started oddly: streams closed or full, no home, encodings that are not UTF-8."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from image_files import noise, save
from typer.testing import CliRunner

from diffusion_inversion.cli import app


def shell(line: str, folder: Path, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """Run a shell line in which $DINV is the command."""
    script = folder / "dinv.py"
    script.write_text("from diffusion_inversion.cli import main\nmain()\n")
    source = str(Path(__file__).resolve().parents[2] / "src")
    given = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        ["bash", "-c", line.replace("$DINV", f"{sys.executable} {script}")],
        cwd=folder,
        env={key: value for key, value in given.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in ("b", "ü"):
        for row in range(4):
            save(tmp_path / "data" / name / f"{row}.png", noise(16, 16, 3))
    return tmp_path / "data"


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(data: Path, closed: str) -> None:
    """With stdout closed the first file that is opened becomes stdout, and is written into."""
    done = shell(f"$DINV inspect data --csv out.csv --json {closed}", data.parent)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert (data.parent / "out.csv").read_text() == "split,file,severity,cause,remedy\n"
    if ">&-" not in closed.replace("2>&-", ""):
        assert json.loads(done.stdout)["ok"]


@pytest.mark.slow
def test_a_full_stdout_is_a_full_disk(data: Path) -> None:
    done = shell("$DINV inspect data > /dev/full", data.parent)
    assert done.returncode == 7, done.stderr
    assert done.stderr == "error: stdout: cannot be written (No space left on device); what was committed is kept\n"
    assert shell("$DINV inspect data --json > /dev/full 2> /dev/full", data.parent).returncode == 7
    assert shell("$DINV inspect gone 2> /dev/full", data.parent).returncode == 2
    done = shell("$DINV metrics data data --k 3 --json 2> /dev/full", data.parent)  # its progress cannot be shown
    assert done.returncode == 0 and json.loads(done.stdout)["ok"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437"])
def test_a_terminal_without_unicode(data: Path, encoding: str) -> None:
    line = "import sys; from diffusion_inversion.cli.surroundings import prepare; prepare(); print('70 ± 1 → ü ✓')"
    (data.parent / "say.py").write_text(line)
    done = subprocess.run(
        [sys.executable, "say.py"],
        cwd=data.parent,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src"), "PYTHONIOENCODING": encoding},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode(encoding).replace("±", "+-").replace("ü", "\\xfc") == "70 +- 1 -> \\xfc \\u2713\n"


def test_latin_1_starts_again_in_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusion_inversion.cli import surroundings

    started: list[list[str]] = []
    monkeypatch.setattr(surroundings.sys, "getfilesystemencoding", lambda: "iso8859-1")
    monkeypatch.setattr(surroundings.os, "execv", lambda path, arguments: started.append(arguments))
    surroundings._use_utf8()
    assert started == [[sys.executable, "-X", "utf8", *sys.orig_argv[1:]]]


@pytest.mark.parametrize(
    "locale",
    [{"LC_ALL": "C"}, {"LC_ALL": "en_US.ISO-8859-1"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}],
)
def test_class_names_do_not_depend_on_the_locale(data: Path, locale: dict[str, str]) -> None:
    done = shell("$DINV inspect data --json", data.parent, **{"LANG": None, "PYTHONUTF8": None, **locale})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["train"]["classes"].keys() == {"b", "ü"}


def test_names_that_are_read_in_another_encoding_are_refused(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the functions, which cannot start Python again."""
    from diffusion_inversion.data import scan

    monkeypatch.setattr(scan.sys, "getfilesystemencoding", lambda: "iso8859-1")
    problems = [problem for problem in scan.scan_folder(data).problems if problem.fatal]
    assert [problem.file for problem in problems] == ["ü"] and "PYTHONUTF8=1" in problems[0].remedy


@pytest.mark.slow
def test_a_user_without_a_home(data: Path) -> None:
    """A uid of a container: no passwd entry, no HOME."""
    nobody = "import pwd\ndef gone(key): raise KeyError(key)\npwd.getpwuid = pwd.getpwnam = gone\n"
    (data.parent / "dinv2.py").write_text(nobody + "from diffusion_inversion.cli import main; main()")
    names = dict.fromkeys(("HOME", "USER", "LOGNAME", "HF_HOME", "DINV_DATA", "XDG_CACHE_HOME"))

    def run(command: str) -> subprocess.CompletedProcess[str]:
        return shell(f"{sys.executable} dinv2.py {command}", data.parent, **names)

    for command, code in (("inspect data --json", 0), ("doctor", None), ("metrics data data --k 3", 0)):
        done = run(command)
        assert "Traceback" not in done.stderr, done.stderr
        assert code is None or done.returncode == code, done.stderr
    assert not (data.parent / "~").exists()
    done = run("inspect '~nobody-here/x'")
    assert done.returncode == 2 and "no home folder is known for its ~" in done.stderr
    functions = "from diffusion_inversion.data.sources import default_root; print(default_root())"
    (data.parent / "root.py").write_text(nobody + functions)
    done = shell(f"{sys.executable} root.py", data.parent, **names)
    assert done.stdout.strip() == str(data.parent / ".diffusion-inversion" / "data"), done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["inspect", ""], ["run", "digits", "--out", ""], ["invert", "digits", "--out="], ["verify", ""],
     ["sweep", ""], ["inspect", "digits", "--test", ""], ["forget", ".", "--source", ""]],
)  # fmt: skip
def test_an_empty_value_is_not_the_working_folder(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2 and "is empty; give a value" in done.output


def test_a_tilde_that_the_shell_left_is_the_home_folder(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--out "~/run"`, quoted: once a folder that is called `~`."""
    monkeypatch.setenv("HOME", str(data.parent / "home"))
    monkeypatch.chdir(data.parent)
    (data.parent / "home").mkdir()
    done = CliRunner().invoke(app, ["inspect", str(data), "--csv", "~/problems.csv"])
    assert done.exit_code == 0, done.output
    assert (data.parent / "home" / "problems.csv").is_file() and not (data.parent / "~").exists()


def test_more_pixels_than_memory_are_refused_before_one_is_decoded(data: Path) -> None:
    for command, said in (
        (["inspect"], "an image at 1000000 px needs about"),
        (["invert", "--out", str(data.parent / "run")], "images at 1000000 px need about"),
    ):
        done = CliRunner().invoke(app, [*command, str(data), "--size", "1000000"])
        assert done.exit_code == 4 and said in done.output and "give a smaller --size" in done.output, done.output


def test_json_has_no_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    import typer

    from diffusion_inversion.cli.command import command

    single = typer.Typer()

    @single.command()
    def say() -> None:
        with command(True) as summary:
            summary |= {"text": "", "a": float("nan"), "b": [1.5, (float("inf"), {"c": float("-inf")})]}

    done = CliRunner().invoke(single, [])
    assert json.loads(done.stdout) == {"ok": True, "a": None, "b": [1.5, [None, {"c": None}]]}


def test_empty_data_names_nothing() -> None:
    from diffusion_inversion.data.datasets import load_images
    from diffusion_inversion.errors import UsageError

    with pytest.raises(UsageError, match="DATA: empty"):
        load_images("")
