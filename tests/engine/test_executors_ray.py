"""Workers in a real Ray cluster of two nodes on this machine: actors are killed, a node goes away in the middle."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Bench, assert_same
from workers import UNITS, done, invert_command, wait_until, watchers

from diffusion_inversion.engine.executors import watch
from diffusion_inversion.engine.executors.ray import Ray

ray = pytest.importorskip("ray", reason="not installed: pip install 'diffusion-inversion[ray]'")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    node = {"num_cpus": 2, "num_gpus": 0, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, connect=True, head_node_args=node)
    cluster.second = cluster.add_node(**node)
    cluster.wait_for_nodes()
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_actors_are_killed_and_a_node_goes_away_and_the_bits_are_those_of_one(
    cluster: Any, bench: Bench, whole: Path, tmp_path: Path
) -> None:
    run, events = tmp_path / "run", []
    command = invert_command(bench, run, tmp_path / "logs")

    def harm() -> None:
        wait_until(lambda: done(run))
        os.kill(watchers(command, 0)[-1], signal.SIGKILL)  # the actor of worker 0
        events.append(("actor", done(run)))
        before = done(run)
        wait_until(lambda: done(run) > before)
        cluster.remove_node(cluster.second)
        events.append(("node", done(run)))

    harming = threading.Thread(target=harm)
    harming.start()
    ended = watch.watch(Ray(command, 1, 0, 3), command, 2, 3)
    harming.join()
    assert [what for what, _ in events] == ["actor", "node"] and events[1][1] < UNITS, events
    assert ended.restarts.get(0, 0) >= 1 and sum(ended.restarts.values()) >= 2, ended
    assert invert_command(bench, run, tmp_path / "again").start(0).wait() == 0  # sweeps what the killed ones left
    assert_same(run, whole)
