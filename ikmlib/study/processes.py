"""Several Python programs at once, each in a process of its own."""
from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from ikmlib.config import ROOT, cores


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
    others = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if os.path.isabs(entry)]
    path = os.pathsep.join([str(ROOT), *others])   # another entry would be the caller's folder
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores() // at_once))
    common = {**os.environ, **places(), "PYTHONPATH": path, "OMP_NUM_THREADS": threads, "PYTHONUTF8": "1"}
    waiting, running = list(enumerate(commands)), {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                index, (words, own) = waiting.pop(0)
                running[index] = subprocess.Popen([sys.executable, "-P", "-m", *words], stdin=subprocess.DEVNULL,
                                                  env=common | own, process_group=0)
            time.sleep(0.1)
            for index in [index for index, process in running.items() if process.poll() is not None]:
                yield index, running.pop(index).returncode
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
