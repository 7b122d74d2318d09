"""The plan's unfinished runs as tasks of a Ray cluster, on a folder of results that all its nodes share.

Ray places the tasks, and gives those of a node that died to another one, which continues from their last checkpoints.
Locks keep two tasks from one run, so the folder needs a file system that knows them, such as NFS 4.
"""
import contextlib
import math
import time
from collections.abc import Sequence

import ray
from tqdm import tqdm

from ikmlib import config
from ikmlib.study import records, training
from ikmlib.study.records import Run
from ikmlib.study.runner import places

LOOK_EVERY = 30.0   # seconds between looks at the tasks
RETRIES = 100       # of a task whose node died; an error of the training itself is not retried


def _train(run: Run, runs: Sequence[Run], end: float) -> int:
    """One task: `training.train_runs` of one of the runs, until `end` in seconds since the epoch."""
    training.refuse_mixture(runs)
    return training.train_runs([run], deadline=time.monotonic() + end - time.time(), show=False)


def _updates(run: Run) -> int:
    """`records.updates_done`; 0 for a checkpoint that another node replaces at this moment."""
    with contextlib.suppress(ValueError, OSError):
        return records.updates_done(run)
    return 0


def train(runs: Sequence[Run], address: str, jobs: int | None = None, time_limit: float = math.inf) -> int:
    """Train the runs that are not finished, in order; returns how many diverged or failed. A run that fails stops no
    other, and one bar shows the updates of all. After `time_limit` seconds all tasks save and end.

    `address`: of the cluster; an empty one joins the Ray that runs here, else starts one. A task takes a CPU core or,
    where the cluster has GPUs, one of `jobs` (default 4) equal parts of a GPU. Raises what `ray.init` raises without a
    cluster there.
    """
    variables = places() | {"IKM_RESULTS": str(config.results_root().resolve()), "IKM_COMMIT": records.git_commit(),
                            "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
    ray.init(address or None, log_to_driver=False, configure_logging=False, runtime_env={
        "env_vars": variables, "py_modules": [str(config.ROOT / "ikmlib")]})   # workers get this very ikmlib
    try:
        share = {"num_gpus": 1 / (jobs or 4), "num_cpus": 0} if ray.cluster_resources().get("GPU") else {"num_cpus": 1}
        task, end = ray.remote(**share, max_retries=RETRIES)(_train), time.time() + time_limit
        waiting = {task.remote(run, runs, end): run for run in runs if not (run.finished or run.diverged)}
        bad, done = 0, 0
        with tqdm(total=sum(run.updates for run in waiting.values()), unit="upd", smoothing=0.05) as bar:
            while waiting:
                for reference in ray.wait(list(waiting), num_returns=len(waiting), timeout=LOOK_EVERY)[0]:
                    run = waiting.pop(reference)
                    done += _updates(run)
                    try:
                        bad += ray.get(reference)
                        bar.write(f"{run.id}: {_updates(run)} of {run.updates} updates")
                    except ray.exceptions.RayError as error:
                        bad += 1
                        bar.write(f"{run.id}: failed: {str(error).strip().splitlines()[-1]}")
                bar.update(done + sum(map(_updates, waiting.values())) - bar.n)
        return bad
    finally:
        ray.shutdown()
