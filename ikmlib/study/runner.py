"""Executes the notebooks, as `python -m ikmlib run` does: several at once, and one that fails stops no other.

Papermill executes each of them in a process of its own, which is this module as a program.
"""
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ikmlib.config import ROOT, Profile, cores, folder_from, results_root

NOTEBOOKS = ROOT / "notebooks"
AT_ONCE = 4                  # notebooks executed at the same time, at most
ALONE = ("02", "08", "13", "99")   # they measure times, or read what the others wrote: after the others, one by one


def find_notebooks(only: Sequence[str] = ()) -> list[Path]:
    """The notebooks `NN_name.ipynb`, sorted: all of them, or those in `only`, by number ("04") or name ("04_table3").

    Raises FileNotFoundError if there is no notebook at all, ValueError for an entry of `only` that names none.
    """
    found = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise FileNotFoundError(f"no notebooks NN_name.ipynb in {NOTEBOOKS}")
    for name in only:
        if not any(name in (path.stem, path.stem[:2]) for path in found):
            raise ValueError(f"no notebook {name!r}; there are: {', '.join(path.stem for path in found)}")
    return [path for path in found if not only or path.stem in only or path.stem[:2] in only]


def places() -> dict[str, str]:
    """The environment variables that name the caller's folders, as absolute paths."""
    names = ("IKM_RESULTS", "IKM_DATA", "IKM_CACHE")
    return {name: os.path.abspath(folder) for name in names if (folder := folder_from(name))}


def programs(commands: Sequence[tuple[Sequence, dict[str, str]]], at_once: int) -> Iterator[tuple[int, int]]:
    """Run Python modules, `at_once` at a time; yields (index in `commands`, exit code) of each as it ends.

    A command is a module with its arguments, and its own environment variables. The programs share the cores and import
    this very ikmlib. Ctrl-C reaches this process alone, which ends them whenever it stops.
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


def execute(notebook: Path, copy: Path, profile: str, train: bool) -> int:
    """Execute a notebook into the file `copy`, and print what became of it; returns the exit code, 1 if it failed.

    The notebook gets the parameter `profile`, and `train` if it has that one. After a failure the copy shows the error.
    """
    import nbformat
    import papermill

    start, stopped = time.monotonic(), ""
    parameters = {"profile": profile} | ({"train": train} if "train" in papermill.inspect_notebook(notebook) else {})
    try:
        papermill.execute_notebook(
            notebook, copy, parameters, kernel_name="ikm", cwd=notebook.parent, progress_bar=False, start_timeout=300,
            stderr_file=sys.stderr if sys.stderr.isatty() else None,   # the progress bars of training
            iopub_timeout=120, coalesce_streams=True)   # a busy machine; one line for a progress bar
    except Exception as error:   # of a cell, or a kernel that died
        stopped = f"{getattr(error, 'ename', type(error).__name__)}: {getattr(error, 'evalue', error)}"
    if copy.exists():
        executed = nbformat.reads(portable(copy.read_text("utf-8")), as_version=4)
        executed = relinked(executed, "../../../notebooks", "../")   # from results/<profile>/notebooks
        executed.metadata.papermill.update(input_path=copy.name, output_path=copy.name)
        if stopped:
            executed.cells.insert(0, nbformat.v4.new_markdown_cell(f"**Stopped: {stopped}**"))
        nbformat.write(executed, copy)
    took = f"after {time.monotonic() - start:.0f} s"
    print(copy.stem, f"FAILED {took}: {stopped}" if stopped else f"ok {took}", flush=True)
    return int(stopped != "")


def portable(text: str) -> str:
    """The text of a notebook in which folders of this machine are names: executed copies are read elsewhere."""
    named = {folder: f"${name}" for name, folder in places().items()}
    for folder, name in (named | {str(ROOT): ".", sys.prefix: "$PYTHON", os.path.expanduser("~"): "~"}).items():
        if folder != os.sep:   # not within a longer name or a picture in base64; a line may begin with it
            text = re.sub(rf"(?:(?<=\\n)|(?<![\w.+/-])){re.escape(folder)}(?![\w+-])", name, text)
    return text


def relinked(notebook, folder: str, start: str = ""):
    """A notebook whose relative links in Markdown, those that begin with `start`, lead on from `folder`."""
    def led(text: str) -> str:
        return re.sub(rf"\]\((?![a-z]+:|#)({re.escape(start)}[^)\s]+)",
                      lambda link: f"]({os.path.normpath(f'{folder}/{link[1]}')}", text)

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = led(cell.source)
        for data in (output.data for output in cell.get("outputs", ()) if "text/markdown" in output.get("data", ())):
            data["text/markdown"] = led(data["text/markdown"])
    return notebook


def run_notebooks(profile: Profile, only: Sequence[str] = (), train: bool = True) -> int:
    """Execute the notebooks, or those in `only` (see `find_notebooks`), for a profile.

    `train` False: recorded runs are used, and nothing is trained. Executed copies go to `results/<profile>/notebooks/`.
    Returns the exit code, 1 if a notebook failed. Raises as `find_notebooks` does.
    """
    from ipykernel.kernelspec import write_kernel_spec

    from ikmlib.files import write_text

    paths, out, failed = find_notebooks(only), results_root().resolve() / profile.name / "notebooks", 0
    alone = [path for path in paths if path.stem[:2] in ALONE]
    together = [path for path in paths if path not in alone]
    elsewhere = [path.name for path in find_notebooks() if path not in paths and not (out / path.name).exists()]
    print(f"profile {profile.name}: executing {', '.join(path.stem[:2] for path in paths)} into {out} …", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        # a kernel that is this very Python, whatever others are installed, and keeps its warnings to itself
        write_kernel_spec(f"{folder}/kernels/ikm", extra_arguments=["--Application.log_level=CRITICAL"])
        for chosen, at_once in ((together, min(cores(), AT_ONCE)), (alone, 1)):
            commands = [(("ikmlib.study.runner", path, f"{folder}/{path.name}", profile.name, str(train)),
                         {"JUPYTER_PATH": folder, "IPYTHONDIR": folder}) for path in chosen]
            for index, code in programs(commands, at_once):
                copy = Path(folder, chosen[index].name)
                if copy.exists():
                    text = copy.read_text("utf-8")
                    for name in elsewhere:   # not executed at this profile: links lead to the notebook itself
                        text = text.replace(f"]({name}", f"](../../../notebooks/{name}")
                    write_text(out / copy.name, text)
                if code not in (0, 1):   # it was killed, and could not say so
                    print(copy.stem, f"FAILED: exit code {code}", flush=True)
                failed += code != 0
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(execute(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4] == "True"))
