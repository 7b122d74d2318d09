"""Trains what the plan declares, in its order, in one process or in several that share the work; says what is left."""
import math
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pandas as pd
import torch

from ikmlib import config, datasets, files
from ikmlib.config import PROFILES, Profile, cores
from ikmlib.study import experiments, records, scoring, weights
from ikmlib.study.records import Run
from ikmlib.study.runner import programs
from ikmlib.trainers import TrainingDiverged


def _rows(profile: Profile | None, only: Sequence[str] = ()) -> list[experiments.Row]:
    """The rows of the plan that `queue` is asked for."""
    for wanted in only:
        if not any(wanted in (name, name[:2]) for name in experiments.NOTEBOOKS):
            raise ValueError(f"no runs are known for {wanted}; allowed: {', '.join(experiments.NOTEBOOKS)}")
    return [row for row in experiments.PLAN if (row.profile == profile.name if profile else len(row.line) == 1)
            and (not only or row.notebook in only or row.notebook[:2] in only)]


def queue(profile: Profile | None, only: Sequence[str] = ()) -> list[Run]:
    """Runs of the plan in its order, each once: line by line, part by part, seed by seed. `profile` None: of the lines
    a to g; `only`: numbers or names of notebooks. Raises ValueError for a notebook without runs."""
    rows = _rows(profile, only)
    groups = list(dict.fromkeys((row.line, row.part) for row in rows))
    order = sorted((groups.index((row.line, row.part)), seed, place) for place, row in enumerate(rows)
                   for seed in row.seeds)
    return list(dict.fromkeys(run for _, seed, place in order for run in rows[place].runs(seed)))


def kept(run: Run) -> bool:
    """Whether a run's weights are kept under results/weights: what notebook 11 reads and, at `cpu-long`, the pairs of
    the primary endpoint and Table I's network."""
    vanilla = replace(experiments.UHDB, attention="none")
    return PROFILES[run.profile].evidence and (
        run in list(experiments.planned(PROFILES[run.profile], "fig5").run)
        or run.profile == "cpu-long" and run.arch in (experiments.UHDB, vanilla, experiments.UHDN))


def refuse_mixture(runs: Iterable[Run]) -> None:
    """Raise ValueError if finished runs were trained on another kind of device, or at another precision, than here: a
    comparison may not mix them. Versions and instruction sets may differ; records name them."""
    here = records.here(records.default_device())
    for run in runs:
        if run.finished:
            there = records.read_record(run.folder)
            kinds = {(where["device"].endswith(" cores"), where["precision"]) for where in (here, there)}   # of a CPU
            if len(kinds) > 1:
                raise ValueError(f"{run.id} was trained on {there['device']} in {there['precision']}; its comparisons "
                                 f"cannot be completed on {here['device']} in {here['precision']}. Set IKM_RESULTS to "
                                 "a folder of its own for this machine")


def train_runs(runs: Iterable[Run], *, deadline: float = math.inf, show: bool = True) -> int:
    """Train the runs that are not finished, in order, until all are or `deadline` (time.monotonic()) has come, and
    score all of them (see `scoring.score`); returns how many diverged. Runs that had diverged before are passed over.

    Several processes may share them: each takes the first run that no other has. Raises as `records.train` and, where
    there is something to train, `refuse_mixture` do.
    """
    runs, diverged = list(dict.fromkeys(runs)), 0
    if not all(run.finished or run.diverged for run in runs):
        refuse_mixture(runs)
    for run in runs:
        if time.monotonic() >= deadline:
            break
        if run.diverged:
            records.updates_done(run)   # refuses a damaged record
            continue
        try:
            if records.train(run, deadline=deadline, show=show):
                scoring.score(run)
                if kept(run) and (run.folder / "weights.pt").exists() and not weights.path(run).exists():
                    weights.export(run.folder, half=run.profile == "cpu-long" and run.arch.blocks == 1)
        except TrainingDiverged as error:
            print(error, flush=True)
            diverged += 1
    return diverged


def prepare(profile: Profile | None, jobs: int | None, download: bool) -> None:
    """Fetch missing image sets if `download`. Raises ValueError for `jobs` below 1, FetchError for a training set."""
    if jobs is not None and jobs < 1:
        raise ValueError(f"--jobs must be 1 or more, not {jobs}")
    sets = profile or PROFILES["cpu"]
    for name in [*sets.train_sets, *sets.test_sets] if download else ():
        try:
            if not datasets.is_installed(name):
                datasets.fetch(name)
        except datasets.FetchError as error:
            if name in sets.train_sets:
                raise
            print(f"note: {error}", file=sys.stderr)   # scores can follow later


def train(profile: Profile | None, only: Sequence[str], jobs: int | None, time_limit: float = float("inf"),
          download: bool = True) -> int:
    """Train the unfinished runs of `queue(profile, only)`, in `jobs` processes that share the queue.

    Without `jobs`, one a core but at most 8, or on a GPU what its memory holds, at most 4. `time_limit` is in seconds.
    Returns the exit code, 0 if no run diverged and no process failed. Raises as `prepare` does, ValueError for unknown
    notebooks, and KeyboardInterrupt if a process was stopped.
    """
    prepare(profile, jobs, download)
    with (warnings.catch_warnings(record=True, action="always") as said,
          files.locked(config.results_root() / ".lock", wait=True)):
        jobs = 1 if said else jobs   # on a file system without locks, two would train the same run
    unfinished = sum(not (run.finished or run.diverged) for run in queue(profile, only))
    if jobs is None and records.default_device().type == "cuda":
        sets = (profile or PROFILES["cpu"]).train_sets
        gigabytes = 12 if "DIV2K" in sets else 2   # of a process: images, activations, CUDA itself
        jobs = max(1, min(4, int(torch.cuda.get_device_properties(0).total_memory / 1e9 / gigabytes)))
    jobs = min(unfinished, jobs or min(cores(), 8))
    if jobs <= 1:
        return int(train_runs(queue(profile, only), deadline=time.monotonic() + time_limit) > 0)
    print(f"{profile.name if profile else 'the plan'}: {unfinished} runs to train, {jobs} at a time", flush=True)
    words = ("ikmlib", "train", "--jobs=1", "--no-download", f"--only={','.join(only)}", f"--time-limit={time_limit}",
             *([f"--profile={profile.name}"] if profile else []))
    codes = [code for _, code in programs([(words, {"TQDM_POSITION": str(i)}) for i in range(jobs)], jobs)]
    if 130 in codes:
        raise KeyboardInterrupt
    return max(map(abs, codes))   # a negative code is the signal that ended a process


def status(profile: Profile | None = None) -> pd.DataFrame:
    """The plan, row by row: line, profile, notebook, part, N (blocks), seeds, runs, finished, diverged, hours_left.

    A run that several rows share counts in the first of them. Hours left are an estimate for one run at a time: what
    is missing takes as long for its multiply-adds as the median of the runs that were finished on this kind of device,
    NaN where there are none. `profile` None: the lines a to g.
    """
    def work(run: Run) -> float:   # multiply-adds an LR pixel, times pixels seen: it only compares runs
        return run.cost[1] * run.scale ** 2 * run.updates * run.batch * run.patch ** 2

    table, seen, device = [], set(), records.device_name(records.default_device()).split(",")[0]
    finished = [(run, records.read_record(run.folder)) for run in queue(profile) if run.finished]
    paces = [record["train_seconds"] / work(run) for run, record in finished
             if record["device"].split(",")[0] == device]
    pace = pd.Series(paces, dtype=float).median()   # seconds
    for row in _rows(profile):
        runs = [run for run in dict.fromkeys(run for seed in row.seeds for run in row.runs(seed)) if run not in seen]
        seen.update(runs)
        done = {run: records.updates_done(run) for run in runs}
        left = sum(work(run) * (1 - done[run] / run.updates) for run in runs if not run.diverged)
        states = Counter(run.status for run in runs)
        blocks = sorted({run.arch.blocks for run in row.cells().values() if not run.peer})
        table.append((row.line, row.profile, row.notebook, row.part, "-".join(map(str, blocks)),
                      " ".join(map(str, row.seeds)), len(runs), states["finished"], states["diverged"],
                      left * pace / 3600 if left else 0.0))
    return pd.DataFrame(table, columns=["line", "profile", "notebook", "part", "N", "seeds", "runs", "finished",
                                       "diverged", "hours_left"])
