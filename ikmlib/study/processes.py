"""Several processes at once: Python programs, and the training of the queue by them."""
from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from ikmlib.config import PROFILES, ROOT, Profile, cores


def places() -> dict[str, str]:
    """The environment variables that name the caller's folders, as absolute paths."""
    names = ("IKM_RESULTS", "IKM_DATA", "IKM_CACHE")
    return {name: os.path.abspath(os.path.expanduser(os.environ[name])) for name in names if os.environ.get(name)}


def programs(commands: Sequence[tuple[Sequence, dict[str, str]]], at_once: int) -> Iterator[tuple[int, int]]:
    """Run Python modules, `at_once` at a time: (index in `commands`, exit code) of each of them as it ends.

    A command is a module with its arguments, and its own environment variables. The programs share the cores and import
    this very ikmlib. They have process groups of their own, so that Ctrl-C reaches this process alone; whatever stops
    it ends them.
    """
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores() // at_once))
    common = {**os.environ, **places(), "PYTHONPATH": path, "OMP_NUM_THREADS": threads, "PYTHONUTF8": "1"}
    waiting, running = list(enumerate(commands)), {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                index, (words, own) = waiting.pop(0)
                running[index] = subprocess.Popen([sys.executable, "-m", *words], stdin=subprocess.DEVNULL,
                                                  env=common | own, process_group=0)
            time.sleep(0.1)
            for index in [index for index, process in running.items() if process.poll() is not None]:
                yield index, running.pop(index).returncode
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()


def train(profile: Profile | None, only: Sequence[str], jobs: int | None, time_limit: float = float("inf"),
          download: bool = True) -> int:
    """Train the unfinished runs of `experiments.queue(profile, only)`, in `jobs` processes that share the queue.

    Without `jobs`, one a core but at most 8, or 4 on a GPU. `time_limit` is in seconds. Missing image sets are fetched
    first if `download`. Returns the exit code, 0 if no run diverged and no process failed. Raises ValueError for `jobs`
    below 1 and for unknown notebooks, KeyboardInterrupt if a process was stopped.
    """
    from ikmlib.study import experiments, records

    if jobs is not None and jobs < 1:
        raise ValueError(f"--jobs must be 1 or more, not {jobs}")
    if download:
        _fetch(profile or PROFILES["cpu"])
    unfinished = sum(not (run.finished or run.diverged) for run in experiments.queue(profile, only))
    jobs = min(unfinished, jobs or (4 if records.default_device().type == "cuda" else min(cores(), 8)))
    if jobs <= 1:
        return int(experiments.work(profile, only=only, time_limit=time_limit) > 0)
    print(f"{profile.name if profile else 'the plan'}: {unfinished} runs to train, {jobs} at a time", flush=True)
    words = ("ikmlib", "train", "--jobs=1", "--no-download", f"--only={','.join(only)}", f"--time-limit={time_limit}",
             *([f"--profile={profile.name}"] if profile else []))
    codes = [code for _, code in programs([(words, {"TQDM_POSITION": str(i)}) for i in range(jobs)], jobs)]
    if 130 in codes:
        raise KeyboardInterrupt
    return max(map(abs, codes))   # a negative code is the signal that ended a process


def _fetch(profile: Profile) -> None:
    """Fetch the profile's image sets that are missing. Which cannot be had, and what serves instead, goes to stderr."""
    from ikmlib import datasets

    for name in (*profile.train_sets, *profile.test_sets):
        try:
            if not datasets.is_installed(name):
                datasets.fetch(name)
        except datasets.FetchError as error:
            print(f"note: {error}\nRuns without their image sets use embedded photographs, and their records say so.",
                  file=sys.stderr)
