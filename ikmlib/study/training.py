"""Training what the plan declares, in its order, by one process or several that share it; and how far it is."""
from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from ikmlib import config, datasets, files
from ikmlib.config import PROFILES, Profile, cores
from ikmlib.models import ARCHITECTURES
from ikmlib.study import experiments, recipe, records, weights
from ikmlib.study.other_attention import other_attention_scores
from ikmlib.study.records import Run, with_available_data
from ikmlib.study.runner import programs
from ikmlib.trainers import TrainingDiverged

# --- the queue ------------------------------------------------------------------------------------------------------


def _rows(profile: Profile | None, only: Iterable[str]) -> list[experiments.Row]:
    """Lines of the plan for a profile (None: for the stages A to E) and notebooks, all if none is named. Unknown ones:
    ValueError."""
    meant = {wanted: {name for name in experiments.NOTEBOOKS if wanted in (name, name[:2])} for wanted in only}
    if unknown := [wanted for wanted, names in meant.items() if not names]:
        raise ValueError(f"no runs are known for {', '.join(unknown)}; allowed: {', '.join(experiments.NOTEBOOKS)}")
    chosen = set().union(*meant.values()) if meant else experiments.NOTEBOOKS
    return [row for row in experiments.PLAN if row.notebook in chosen
            and (row.profile == profile.name if profile else len(row.stage) == 1)]


def queue(profile: Profile | None, only: Iterable[str] = ()) -> list[Run]:
    """Runs of the plan in its order, each once: stage by stage, seed by seed, line by line. `profile` None: of all
    stages A to E; `only`: see `_rows`."""
    if profile == PROFILES["recipe"]:
        return [run for step in recipe.steps() for run in recipe.runs(*step) if not run.diverged]
    rows = _rows(profile, only)
    return list(dict.fromkeys(with_available_data(
        run for stage in dict.fromkeys(row.stage for row in rows)
        for seed in sorted({seed for row in rows for seed in row.seeds})
        for row in rows if row.stage == stage for run in row.runs(seed))))


# --- training it ----------------------------------------------------------------------------------------------------


def keep(run: Run) -> None:
    """What later notebooks need of a finished run whose weights are at hand: test-time controls of U-HDB and RB with
    IKM; and exported weights of what notebook 11 reads and of U-HDB without and with IKM at `cpu-long`."""
    profile, uhdb = PROFILES[run.profile], experiments.UHDB
    if not profile.evidence or run != Run.of(profile, run.arch, run.seed) or not (run.folder / "weights.pt").exists():
        return
    with records.lock(run) as mine:
        if not mine or not run.finished:
            return
        if run.arch in (uhdb, ARCHITECTURES["rb"]):
            other_attention_scores(run)
        if run in list(experiments.planned(profile, "fig5").run) or (
                profile.name == "cpu-long" and run.arch in (uhdb, replace(uhdb, attention="none"))):
            weights.export(run.folder)


def train_runs(runs: Iterable[Run], *, deadline: float = math.inf, show: bool = True) -> int:
    """Train the runs that are not finished, in order, until all are or `deadline` (time.monotonic()) has come; returns
    how many diverged. Several processes may share them: each takes the first run that no other has."""
    diverged = 0
    for run in dict.fromkeys(runs):
        if time.monotonic() >= deadline:
            break
        try:
            if records.train(run, deadline=deadline, show=show):
                keep(run)
        except TrainingDiverged as error:
            print(error, flush=True)
            diverged += 1
    return diverged


def train(profile: Profile | None, only: Sequence[str], jobs: int | None, time_limit: float = float("inf"),
          download: bool = True) -> int:
    """Train the unfinished runs of `queue(profile, only)`, in `jobs` processes that share the queue.

    Without `jobs`, one a core but at most 8, or 4 on a GPU. `time_limit` is in seconds. Missing image sets are fetched
    first if `download`. Returns the exit code, 0 if no run diverged and no process failed. Raises ValueError for `jobs`
    below 1 and for unknown notebooks, KeyboardInterrupt if a process was stopped.
    """
    if jobs is not None and jobs < 1:
        raise ValueError(f"--jobs must be 1 or more, not {jobs}")
    if download:
        _fetch(profile or PROFILES["cpu"])
    with (warnings.catch_warnings(record=True, action="always") as said,
          files.locked(config.results_root() / ".lock", wait=True)):
        jobs = 1 if said else jobs   # on a file system without locks, two would train the same run
    unfinished = sum(not (run.finished or run.diverged) for run in queue(profile, only))
    jobs = min(unfinished, jobs or (4 if records.default_device().type == "cuda" else min(cores(), 8)))
    if jobs <= 1:
        return int(train_runs(queue(profile, only), deadline=time.monotonic() + time_limit) > 0)
    print(f"{profile.name if profile else 'the plan'}: {unfinished} runs to train, {jobs} at a time", flush=True)
    words = ("ikmlib", "train", "--jobs=1", "--no-download", f"--only={','.join(only)}", f"--time-limit={time_limit}",
             *([f"--profile={profile.name}"] if profile else []))
    codes = [code for _, code in programs([(words, {"TQDM_POSITION": str(i)}) for i in range(jobs)], jobs)]
    if 130 in codes:
        raise KeyboardInterrupt
    return max(map(abs, codes))   # a negative code is the signal that ended a process


def _fetch(profile: Profile) -> None:
    """Fetch the profile's image sets that are missing. Which cannot be had, and what serves instead, goes to stderr."""
    for name in (*profile.train_sets, *profile.test_sets):
        try:
            if not datasets.is_installed(name):
                datasets.fetch(name)
        except datasets.FetchError as error:
            print(f"note: {error}\nRuns without their image sets use embedded photographs, and their records say so.",
                  file=sys.stderr)


# --- status ---------------------------------------------------------------------------------------------------------


def _work(run: Run) -> float:
    """What a run costs, in units that only compare runs: multiply-adds an LR pixel, times pixels seen."""
    return run.cost[1] * run.scale ** 2 * run.updates * run.batch * run.patch ** 2


def _pace(profiles: Iterable[str]) -> float:
    """Seconds for a unit of work: the median of the profiles' runs that were finished on this kind of device, whatever
    else it did meanwhile. NaN where there are none."""
    device = records.device_name(records.default_device()).split(",")[0]
    folders = (path.parent for name in profiles for path in (config.results_root() / name / "runs").glob("*/run.json"))
    finished = [record for record in map(records.read_record, folders) if record["device"].startswith(device)]
    paces = [record["train_seconds"] / _work(Run.from_record(record)) for record in finished]
    return float(np.median(paces)) if paces else math.nan


def status(profile: Profile | None = None) -> pd.DataFrame:
    """The plan, a row a line: stage, profile, notebook, part, N (blocks), seeds, runs, finished, diverged,
    hours_left.

    A run that several lines share counts in the first of them. Hours left are an estimate for one run at a time: what
    is missing takes as long for its multiply-adds as finished runs did. `profile` None: the stages A to E.
    """
    rows, seen, lines = [], set(), _rows(profile, ())
    pace = _pace(dict.fromkeys(row.profile for row in lines))
    for row in lines:
        runs = [run for run in with_available_data(run for seed in row.seeds for run in row.runs(seed))
                if run not in seen]
        seen.update(runs)
        states = [records.state(run) for run in runs]
        diverged = sum(state == "diverged" for state, _ in states)
        left = sum(_work(run) * (1 - updates / run.updates) for run, (state, updates) in zip(runs, states, strict=True)
                   if state != "diverged")
        rows.append((row.stage, row.profile, row.notebook, row.part,
                     "-".join(map(str, sorted({run.arch.blocks for run in row.cells().values() if not run.peer}))),
                     " ".join(map(str, row.seeds)), len(runs), sum(run.finished for run in runs), diverged,
                     left * pace / 3600 if left else 0.0))
    return pd.DataFrame(rows, columns=["stage", "profile", "notebook", "part", "N", "seeds", "runs", "finished",
                                       "diverged", "hours_left"])
