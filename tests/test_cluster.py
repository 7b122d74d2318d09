"""The plan on Ray: two nodes, emulated on this machine, of which one dies in the middle of a run."""
import threading
import time
from dataclasses import replace

import pandas as pd
import pytest
import torch
from conftest import tiny

from ikmlib.__main__ import main
from ikmlib.study import records, training

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")


@pytest.fixture
def cluster(monkeypatch):
    """A head without cores and two nodes of one core each."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1")
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "300")   # on a busy machine
    small = {"object_store_memory": 80_000_000, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    nodes.workers = [nodes.add_node(num_cpus=1, object_store_memory=80_000_000) for _ in range(2)]
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def training_on(run, seconds=120):
    """Wait until a run has begun and is not finished."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (run.folder / "checkpoint.pt").exists():
            return True
        time.sleep(0.2)
    return False


@pytest.mark.slow
def test_a_node_that_dies_loses_nothing_and_records_are_those_of_one_process(results, cluster, monkeypatch, capfd):
    """Four runs, of which one cannot be trained; a node is killed while its first run is under way."""
    from ikmlib.study import cluster as module

    runs = [tiny(updates=1500), tiny(1, updates=1500), replace(tiny(2), data=("no such set",)), tiny(3)]
    monkeypatch.setattr(training, "queue", lambda profile, only: runs)
    monkeypatch.setattr(module, "LOOK_EVERY", 0.5)
    begun = []

    def kill():
        begun.append(training_on(runs[0]) and training_on(runs[1]))
        begun.append(not (runs[0].finished or runs[1].finished))
        cluster.remove_node(cluster.workers[1], allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    code = main(["train", "--profile", "smoke", "--ray", cluster.address])
    killer.join(150)
    said = capfd.readouterr()
    assert begun == [True, True] and code == 1 and "no such set" in said.out + said.err, said
    good = [runs[0], runs[1], runs[3]]
    assert all(run.finished for run in good) and not runs[2].finished
    found = [(run.scores(), run.curve().drop(columns="seconds")) for run in good]
    monkeypatch.setenv("IKM_RESULTS", str(results / "alone"))
    torch.set_num_threads(1)   # as the tasks have; other numbers of threads sum in another order
    for run, (scores, curve) in zip(good, found, strict=True):
        records.train(run, show=False)
        pd.testing.assert_frame_equal(run.scores(), scores, check_exact=True)
        pd.testing.assert_frame_equal(run.curve().drop(columns="seconds"), curve, check_exact=True)
