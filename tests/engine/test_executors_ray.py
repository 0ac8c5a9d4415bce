"""Workers in a real Ray cluster of two nodes on this machine: actors are killed, a node goes away in the middle.

However busy the machine is, the work does not end before the harm is done: the test itself claims half of the units.
"""

from __future__ import annotations

import fcntl
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from harness import Bench, assert_same
from workers import UNITS, done, invert_command, wait_until, watchers

from diffusion_inversion.engine.executors import watch
from diffusion_inversion.engine.executors.ray import Ray
from diffusion_inversion.engine.lock import CLAIMS
from diffusion_inversion.invert.embeddings import FOLDER, EmbeddingStore

ray = pytest.importorskip("ray", reason="not installed: pip install '.[ray]'")

KEPT = UNITS // 2  # units that nobody gets before the harm is done
PATIENCE = 400.0  # seconds for one step; a machine with ten busy neighbours needs a tenth of it


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes with room for both workers each, beside a head that has none."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    node = {"num_gpus": 0, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, connect=True, head_node_args={**node, "num_cpus": 0})
    cluster.places = [cluster.add_node(**node, num_cpus=2) for _ in range(2)]
    cluster.wait_for_nodes(timeout=PATIENCE)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def _parent(process: int) -> int:
    """0 where it has ended."""
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except FileNotFoundError:
        return 0


def _holder(path: Path) -> int:
    """The process that has a file locked; 0 for none."""
    held = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return next((int(line[4]) for line in held if line[5].endswith(f":{path.stat().st_ino}")), 0)


def test_actors_are_killed_and_a_node_goes_away_and_the_bits_are_those_of_one(
    cluster: Any, bench: Bench, whole: Path, tmp_path: Path
) -> None:
    run, events = tmp_path / "run", []
    command = invert_command(bench, run, tmp_path / "logs")
    (run / CLAIMS).mkdir(parents=True)
    kept = [run / CLAIMS / f"{FOLDER}-{unit}" for unit in list(EmbeddingStore(whole).manifest.units())[-KEPT:]]

    def harm(keeping: dict[Path, ExitStack]) -> None:
        wait_until(lambda: done(run), PATIENCE)
        os.kill(watchers(command, 0)[-1], signal.SIGKILL)  # the actor of worker 0
        events.append(("actor", done(run)))
        wait_until(lambda: command.starts(0) > 1 and done(run) == UNITS - KEPT, PATIENCE)
        keeping[kept[0]].close()  # whoever takes it is at work when its node goes away
        wait_until(lambda: _holder(kept[0]), PATIENCE)
        raylet = _parent(_parent(_holder(kept[0])))  # of the actor that started the worker
        places = {place.all_processes["raylet"][0].process.pid: place for place in cluster.places}
        cluster.remove_node(places[raylet], allow_graceful=False)
        events.append(("node", done(run)))

    with ExitStack() as all_kept:
        keeping = {path: all_kept.enter_context(ExitStack()) for path in kept}
        for path, stack in keeping.items():
            fcntl.flock(stack.enter_context(path.open("w")), fcntl.LOCK_EX)

        def harm_and_let_go() -> None:
            with all_kept:
                harm(keeping)

        harming = threading.Thread(target=harm_and_let_go)
        harming.start()
        ended = watch.watch(Ray(command, 1, 0, 3), command, 2, 3)
        harming.join()
    assert [what for what, _ in events] == ["actor", "node"] and events[1][1] < UNITS, events
    assert ended.restarts.get(0, 0) >= 1 and sum(ended.restarts.values()) >= 2, ended
    again = invert_command(bench, run, tmp_path / "again")
    assert again.start(0).wait() == 0, again.log(0).read_text()  # sweeps what the killed ones left
    assert_same(run, whole)
