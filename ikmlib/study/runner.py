"""Executes the notebooks, as `./run_all.sh` and `python -m ikmlib run` do.

Several at once; one that fails stops no other. Papermill and Jupyter are imported inside the functions
that need them, so that the library imports without them.
"""
from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ikmlib.config import ROOT, folder_from, get_profile, results_root

NOTEBOOKS = ROOT / "notebooks"
PLACES = ("IKM_RESULTS", "IKM_DATA", "IKM_CACHE")   # environment variables that hold folders
INTERRUPTED = 130   # the shell's exit code for Ctrl-C
WORKERS = 4         # notebooks executed at once, at most
ALONE = ("08", "13", "99")   # they measure times, or read what the others wrote: after them, one by one


# --- which notebooks, with what -------------------------------------------------------------------------------------


def find_notebooks(only: Sequence[str] = ()) -> list[Path]:
    """The notebooks `NN_name.ipynb`, sorted; `only` keeps some, by number ("04") or full name, also as "04,07".

    Raises FileNotFoundError if there is no notebook at all, ValueError for an entry of `only` that names none.
    """
    found = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise FileNotFoundError(f"no notebooks NN_name.ipynb in {NOTEBOOKS}")
    wanted = [name.strip() for entry in only for name in entry.split(",")]
    for name in wanted:
        if not any(name in (path.stem, path.stem[:2]) for path in found):
            raise ValueError(f"no notebook {name!r}; there are: {', '.join(path.stem for path in found)}")
    return [path for path in found if not wanted or path.stem in wanted or path.stem[:2] in wanted]


def known_parameters(notebook_path: Path) -> set[str]:
    """Names that the `parameters` cell of a notebook assigns."""
    import papermill

    return set(papermill.inspect_notebook(str(notebook_path)))


@dataclass(frozen=True)
class Job:
    """One notebook to execute."""

    path: Path
    parameters: dict[str, object]   # given to its `parameters` cell


def plan(profile: str, only: Sequence[str] = (), train: bool = True) -> list[Job]:
    """What `run_notebooks` executes, in order: every notebook gets `profile`, and `train` if it has that parameter.

    Raises ValueError for an unknown notebook.
    """
    jobs = []
    for path in find_notebooks(only):
        parameters: dict[str, object] = {"profile": profile}
        if "train" in known_parameters(path):
            parameters["train"] = train
        jobs.append(Job(path, parameters))
    return jobs


def kernel_name() -> str:
    """The Jupyter kernel `ikm`, else `python3`, that runs this very Python; raises RuntimeError if neither does."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    for name in ("ikm", "python3"):
        try:
            program = KernelSpecManager().get_kernel_spec(name).argv[0]
        except NoSuchKernel:
            continue
        if program in ("python", f"python{sys.version_info[0]}"):   # Jupyter puts sys.executable for these
            return name
        # environments may share one binary behind links, so the folder has to be the same, too
        same_folder = os.path.abspath(os.path.dirname(program)) == os.path.abspath(os.path.dirname(sys.executable))
        if same_folder and os.path.exists(program) and os.path.samefile(program, sys.executable):
            return name
    raise RuntimeError(f"no Jupyter kernel runs {sys.executable}; make one with: "
                       f"{sys.executable} -m ipykernel install --sys-prefix --name ikm")


# --- one notebook ---------------------------------------------------------------------------------------------------


@contextmanager
def _kernel_environment() -> Iterator[None]:
    """Kernels start in notebooks/: let them import this very ikmlib and find the caller's folders from there."""
    from unittest.mock import patch

    places = {name: os.path.abspath(folder) for name in PLACES if (folder := folder_from(name))}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with patch.dict(os.environ, places, PYTHONPATH=path):
        yield


def _portable(node: object) -> object:
    """A notebook, or part of one, in which folders of this machine are names: executed copies are read elsewhere."""
    if isinstance(node, dict):
        return {key: item if key.startswith("image/") else _portable(item) for key, item in node.items()}
    if isinstance(node, list):
        return [_portable(item) for item in node]
    if not isinstance(node, str):
        return node
    places = [(os.path.abspath(folder), f"${name}") for name in PLACES if (folder := folder_from(name))]
    places += [(str(ROOT), "."), (sys.prefix, "$PYTHON"), (os.path.expanduser("~"), "~")]
    for folder, name in places:
        if folder != os.sep:
            node = re.sub(rf"(?<![\w.-]){re.escape(folder)}(?![\w-])", name, node)
    return node


def _save_executed(source: Path, target: Path, error: Exception | None) -> None:
    """Moves the executed notebook to `target`, without paths of this machine."""
    import nbformat
    from papermill import PapermillExecutionError

    notebook = nbformat.from_dict(_portable(nbformat.read(source, as_version=4)))
    notebook.metadata.papermill.update(input_path=target.name, output_path=target.name)
    if error is not None and not isinstance(error, PapermillExecutionError):   # papermill shows errors of cells only
        notebook.cells.insert(0, nbformat.v4.new_markdown_cell(f"**Stopped: {type(error).__name__}: {error}**"))
    nbformat.write(notebook, source)
    os.replace(source, target)


def execute(notebook_path: Path, target: Path, parameters: Mapping[str, object]) -> Exception | None:
    """Executes one notebook into `target`; returns what stopped it, None if nothing did.

    The partial notebook of a failure is kept, with the error in it. A parameter that the notebook does not define is
    such an error: `notebook.open_page`, in its first cells, refuses it.
    """
    import papermill

    target.parent.mkdir(parents=True, exist_ok=True)
    error = None
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".running-") as folder, _kernel_environment():
        running = Path(folder).resolve() / target.name
        try:
            papermill.execute_notebook(
                str(notebook_path), str(running), dict(parameters), kernel_name=kernel_name(),
                cwd=str(notebook_path.parent), progress_bar=False, start_timeout=300,
                stderr_file=sys.stderr if sys.stderr.isatty() else None,   # the progress bars of training
                iopub_timeout=120, coalesce_streams=True,   # a busy machine; one line per progress bar
                extra_arguments=["--Application.log_level=CRITICAL"],   # of the kernel itself
            )
        except Exception as caught:  # noqa: BLE001 - whatever stops one notebook must not stop the others
            error = caught
        if running.exists():
            _save_executed(running, target, error)
    return error


def _describe(error: Exception) -> str:
    """Name and message of an error and, where papermill knows it, the cell."""
    from papermill import PapermillExecutionError

    if not isinstance(error, PapermillExecutionError):
        return f"    {type(error).__name__}: {error}"
    cell = "\n".join(f"    | {line}" for line in error.source.splitlines())
    return f"    {error.ename}: {error.evalue}\n    in cell [{error.exec_count}]:\n{cell}"


# --- all of them ----------------------------------------------------------------------------------------------------


def _outcome(job: Job, out: Path) -> tuple[Job, float, str | None]:
    """A notebook executed into the folder `out`: the job, seconds, and what stopped it in words."""
    start = time.monotonic()
    error = execute(job.path, out / job.path.name, job.parameters)
    return job, time.monotonic() - start, None if error is None else _describe(error)


def _share_cores(workers: int) -> None:
    """What a worker process does first: Ctrl-C is its parent's to handle, and kernels share the cores."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))


def _outcomes(jobs: Sequence[Job], out: Path) -> Iterator[tuple[Job, float, str | None]]:
    """The `_outcome` of every job as it comes: several notebooks at once, then those of ALONE one by one."""
    together = [job for job in jobs if job.path.stem[:2] not in ALONE]
    workers = min(len(together), os.cpu_count() or 1, WORKERS)
    if workers > 1:
        try:
            with multiprocessing.get_context("spawn").Pool(workers, _share_cores, (workers,)) as pool:
                yield from pool.imap_unordered(partial(_outcome, out=out), together)
        finally:   # of workers that were stopped
            for folder in out.glob(".running-*"):
                shutil.rmtree(folder, ignore_errors=True)
    for job in jobs if workers < 2 else [job for job in jobs if job not in together]:
        yield _outcome(job, out)


def _run_all(jobs: Sequence[Job], out: Path) -> list[str]:
    """Executes `jobs` into the folder `out` and tells how it goes; names of those that failed."""
    failed = []
    print(f"executing {', '.join(job.path.stem[:2] for job in jobs)} …", flush=True)
    for count, (job, seconds, error) in enumerate(_outcomes(jobs, out), start=1):
        title = f"[{count}/{len(jobs)}] {job.path.stem}"
        if error is None:
            print(f"{title} ok in {seconds:.0f} s", flush=True)
        else:
            failed.append(job.path.stem)
            print(f"{title} FAILED after {seconds:.0f} s; see {out / job.path.name}\n{error}", flush=True)
    return failed


def run_notebooks(profile: str, only: Sequence[str] = (), train: bool = True) -> int:
    """Executes the notebooks, or those in `only`, for one profile, then writes the reports; returns the exit code.

    profile: a name of `config.PROFILES`, or `auto`. only: numbers or names, see `find_notebooks`. train: False uses the
    recorded runs and trains nothing. Executed copies go to `results/<profile>/notebooks/`. The code is 0 if all is
    well, 1 if a notebook failed, 130 after Ctrl-C. Before anything runs: raises ValueError for an unknown profile and
    what `plan` refuses, RuntimeError if no kernel runs this Python.
    """
    name = get_profile(profile).name
    why = f" (auto: {'a' if name == 'small' else 'no'} CUDA device found)" if profile == "auto" else ""
    print(f"profile {name}{why}", flush=True)
    jobs = plan(name, only, train)
    kernel_name()
    try:
        bad = _run_all(jobs, results_root().resolve() / name / "notebooks")
        for stem in bad:
            print(f"not ok: {stem}", flush=True)
        from ikmlib.study.report import write_overall, write_report

        report, overall = write_report(name), write_overall()
    except KeyboardInterrupt:
        print("\ninterrupted: finished runs are kept, the same command continues", flush=True)
        return INTERRUPTED
    print(f"best evidence of all profiles: {overall}", flush=True)
    print(f"report: {report} and {report.with_name('report.html')}", flush=True)
    return 1 if bad else 0
