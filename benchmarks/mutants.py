"""Would the tests notice a wrong line? Mutation testing of the formulas: a sample of the mutants that mutmut makes.

    pip install mutmut
    export OMP_NUM_THREADS=1
    python benchmarks/mutants.py write                      # all mutants, and the tests as they are, below mutants/
    for m in $(python benchmarks/mutants.py modules); do python benchmarks/mutants.py run $m 25; done
    python benchmarks/mutants.py table > table.md
    python benchmarks/mutants.py again invert.slots         # after `write`: do new tests kill what lives there?

`run MODULE 25` runs 25 mutants of the module, or all that it has, but for those that were run: the loop goes on after a
kill. A mutant runs in a fork of a process that has imported all, against the tests of TESTS that reach its function,
quickest first. `alive MODULE` shows the mutants that live.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import libcst
import pytest
from mutmut.__main__ import copy_also_copy_files, copy_src_dir, create_mutants
from mutmut.mutation.file_mutation import MutationVisitor
from mutmut.mutation.trampoline import set_mutant_under_test
from mutmut.state import state

ALIVE = 0  # exit code of tests that noticed nothing
UNREACHED = 33  # mutmut's, for no test that calls the function
STEP = (  # what looks at the loop of stage 1
    "invert/test_reference.py::test_every_step_equals_the_reference_loop"
    " invert/test_reference.py::test_mini_batches_follow_each_other_without_shuffling"
    " invert/test_inversion.py::test_an_image_does_not_depend_on_its_neighbours"
    " invert/test_inversion.py::test_kept_steps_are_the_ends_of_shorter_runs"
    " invert/test_unit_state.py::test_inversion_goes_on_to_the_same_bits sample/test_runaways.py"
)
METRICS = "measure/test_metrics.py measure/test_metrics_oracles.py measure/test_metrics_intervals.py"
# What is meant to notice, by module: files of tests or tests, without those that take long and look at other things.
TESTS = {
    "invert.objective": "invert/test_draws.py generator/test_precision.py"
    " invert/test_inversion.py::test_gradient_equals_autograd_through_diffusers_own_loop"
    " invert/test_inversion.py::test_an_image_does_not_depend_on_its_neighbours"
    " invert/test_reference.py::test_every_step_equals_the_reference_loop"
    " sample/test_runaways.py::test_a_runaway_is_learned_again_at_a_third_of_the_rate",
    "invert.trajectory": STEP,
    "invert.optimisation": STEP + " invert/test_slots.py::test_it_is_the_loop_that_there_was_given_equal_draws",
    "invert.slots": "invert/test_slots.py",
    "invert.philox": "invert/test_philox.py",
    "sample.denoising": "generator/test_samplers.py sample/test_real_guidance.py",
    "sample.guidance": "sample/test_guidance_and_perturb.py sample/test_mixtures.py",
    "sample.perturb": "sample/test_guidance_and_perturb.py sample/test_mixtures.py",
    "sample.variants": "sample/test_variants.py sample/test_mixtures.py",
    "train.gradients": "train/test_gradients.py",
    "train.mixing": "train/test_mixing.py train/test_merging.py train/test_merging_order.py data/test_soft_labels.py",
    "train.evaluation": "train/test_evaluation.py train/test_verdict.py",
    **dict.fromkeys(
        (f"measure.metrics.{name}" for name in ("frechet", "inputs", "intervals", "kernel", "manifold", "units")),
        METRICS,
    ),
}
NOT = "not wide_enough and not slow_down and not as_often_as and not simulat and not seldom"  # simulations of intervals


def outcomes(module: str) -> dict[str, int | None]:
    """Exit code of the tests by mutant of a module; None where it was not run."""
    found: dict[str, int | None] = json.loads(_meta(module).read_text())["exit_code_by_key"]
    return found


def _meta(module: str) -> Path:
    return Path("mutants/src/diffusion_inversion", module.replace(".", "/") + ".py.meta")


def _note(module: str, name: str, code: int) -> None:
    meta = json.loads(_meta(module).read_text())
    meta["exit_code_by_key"][name] = code
    _meta(module).write_text(json.dumps(meta, indent=4))


def write() -> None:
    """Make the mutants, unlike mutmut alone also below `@torch.no_grad()` and the like; copy the tests."""
    skips: Any = MutationVisitor._skip_node_and_children

    def skips_less(self: MutationVisitor, node: libcst.CSTNode) -> bool:
        only_torch = isinstance(node, libcst.FunctionDef) and [
            libcst.Module([]).code_for_node(one.decorator).startswith("torch.") for one in node.decorators
        ] == [True]
        return not only_torch and bool(skips(self, node))

    # mutmut has no setting for it; it is asked for each node in this process alone, while the mutants are written.
    MutationVisitor._skip_node_and_children = skips_less  # type: ignore[method-assign]
    copy_src_dir()
    copy_also_copy_files()
    create_mutants(1)


def forked(mutant: str, tests: Iterable[str], plugins: Iterable[object] = (), seconds: int = 3600) -> int:
    """Exit code of pytest in a fork in which `mutant` is the code; negative where it was killed, as after `seconds`."""
    child = os.fork()
    if child == 0:
        set_mutant_under_test(mutant)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        for stream in (1, 2):
            os.dup2(os.open(os.devnull if mutant != "stats" else "survey.log", os.O_WRONLY | os.O_CREAT), stream)
        code = 3
        try:
            code = pytest.main(["-x", "-q", *OPTIONS, *tests], plugins=list(plugins))
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


OPTIONS = ("-o", "addopts=", "-p", "no:xdist", "-p", "no:cacheprovider", "--tb=native", "--rootdir=.", "-k", NOT)


class Survey:
    """Which tests call which function, how long they take, and what is imported at the end; into a file."""

    def __init__(self, path: Path) -> None:
        self.path, self.seconds, self.reached = path, dict[str, float](), defaultdict[str, list[str]](list)
        self.of_fixture = defaultdict[str, set[str]](set)  # what one that several tests share has called

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        try:
            return (yield)
        finally:
            self.of_fixture[fixturedef.argname] |= state()._stats

    def pytest_runtest_teardown(self, item: Any) -> None:
        for function in state()._stats.union(*(self.of_fixture[name] for name in item.fixturenames)):
            self.reached[function].append(item.nodeid)
        state()._stats.clear()

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0) + report.duration

    def pytest_sessionfinish(self) -> None:
        self.path.write_text(json.dumps([self.seconds, self.reached, list(sys.modules)]))


def run(module: str, names: list[str]) -> None:
    """Run these mutants of a module and note what becomes of each."""
    if not names:
        return
    top = Path.cwd()
    files = ["tests/" + name for name in TESTS[module].split()]
    survey = top / "mutants" / f"{module}.json"
    os.chdir("mutants")
    sys.path[:] = [str(Path("src").resolve()), *(one for one in sys.path if Path(one).resolve() != top / "src")]
    set_mutant_under_test("collection")
    pytest.main(["--collect-only", "-qqq", *OPTIONS, *files])  # imports what the forks use
    if code := forked("stats", files, [Survey(survey)]):
        sys.exit(f"{module}: its tests fail as they are (exit code {code}, mutants/survey.log).")
    seconds, reached, modules = json.loads(survey.read_text())
    for one in modules:
        with contextlib.suppress(ImportError):
            importlib.import_module(one)
    if forked("none", files):
        sys.exit(f"{module}: its tests fail in a fork that changes nothing.")
    print(f"{module}: {len(names)} mutants, {len(seconds)} tests of {sum(seconds.values()):.0f} s", flush=True)
    for name in names:
        start, tests = time.monotonic(), reached.get(name.rpartition("__mutmut_")[0], [])
        code = UNREACHED
        if tests:
            os.chdir(top / "mutants")
            limit = 30 + int(5 * sum(seconds.values()))
            code = forked(name, sorted(tests, key=seconds.__getitem__), seconds=limit)
        os.chdir(top)
        _note(module, name, code)
        print(f"{code:4} {time.monotonic() - start:6.1f} s  {name}", flush=True)


def drawn(module: str, count: int) -> list[str]:
    """At most `count` mutants of a module, at random; a larger count adds to a smaller one."""
    names = sorted(outcomes(module))
    random.Random(module).shuffle(names)
    return names[:count]


def table() -> None:
    print("| module | mutants | run | killed | no test reaches it |\n|---|---|---|---|---|")
    rows = []
    for module in TESTS:
        codes = outcomes(module).values()
        ran = [code for code in codes if code not in (None, UNREACHED)]
        unreached = sum(code == UNREACHED for code in codes)
        rows.append((len(codes), len(ran), sum(code != ALIVE for code in ran), unreached))
        print(f"| `{module}` | {' | '.join(map(str, rows[-1]))} |")
    print(f"| all | {' | '.join(str(sum(column)) for column in zip(*rows, strict=True))} |")


def main() -> None:
    match sys.argv[1:]:
        case ["write"]:
            write()
        case ["modules"]:
            print(*TESTS)
        case ["run", module, count]:
            known = outcomes(module)
            run(module, [name for name in drawn(module, int(count)) if known[name] is None])
        case ["again", module]:
            run(module, [name for name, code in outcomes(module).items() if code in (ALIVE, UNREACHED)])
        case ["alive", module]:
            for name, code in outcomes(module).items():
                if code in (ALIVE, UNREACHED):
                    os.system(f"mutmut show {name}")
        case ["table"]:
            table()
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
