"""The notebook runner, with real kernels on tiny notebooks."""
from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from ikmlib.config import PROFILES
from ikmlib.study import runner

SMOKE = PROFILES["smoke"]
PARAMETERS = 'profile = "smoke"  # how much\ntrain = True'


def make(folder: Path, name: str, *cells: str, parameters: str = PARAMETERS) -> Path:
    """A notebook with a `parameters` cell, then the code cells `cells`."""
    notebook = nbformat.v4.new_notebook()
    notebook.metadata.update(kernelspec={"name": "python3", "display_name": "Python 3", "language": "python"})
    first = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    notebook.cells = [first, *map(nbformat.v4.new_code_cell, cells)]
    path = folder / f"{name}.ipynb"
    nbformat.write(notebook, path)
    return path


def printed(path: Path) -> str:
    """All that the executed notebook `path` printed."""
    cells = nbformat.read(path, as_version=4).cells
    return "".join(out.text for cell in cells for out in cell.get("outputs", ()) if out.output_type == "stream")


@pytest.fixture
def notebooks(tmp_path, results, monkeypatch) -> Path:
    """An empty folder of notebooks."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.setattr(runner, "NOTEBOOKS", folder)
    return folder


def test_selection_by_number_and_name(notebooks):
    with pytest.raises(FileNotFoundError, match="no notebooks NN_name.ipynb in"):
        runner.find_notebooks()
    for name in ("04_table3", "99_report", "00_protocol"):
        make(notebooks, name)
    make(notebooks, "draft")

    def names(*only):
        return [path.stem for path in runner.find_notebooks(only)]

    assert names() == ["00_protocol", "04_table3", "99_report"]
    assert names("04") == names("04_table3") == ["04_table3"]
    assert names("99", "00") == ["00_protocol", "99_report"]
    with pytest.raises(ValueError, match="no notebook '05'; there are: 00_protocol, 04_table3, 99_report"):
        names("04", "05")


def test_several_at_once_one_fails_one_dies_and_those_that_read_them_come_last(notebooks, results, monkeypatch, capfd):
    """Each gets the parameters that it has and this very Python and library, whatever kernels are installed."""
    kernel = notebooks.parent / "kernels" / "ikm" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text('{"argv": ["false"], "display_name": "another Python", "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(notebooks.parent))
    make(notebooks, "01_bad", "value = 3\nraise LookupError(f'no value {value}')", "print('not reached')")
    make(notebooks, "02_dies", "print('alive')", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    make(notebooks, "04_free", "import os, sys, importlib.util as util",
         "print(profile, os.path.basename(os.getcwd()))",
         "print(util.find_spec('ikmlib').origin, os.path.abspath(sys.executable))", parameters='profile = "cpu"')
    see = ("import glob, os\nprint(train, *sorted(glob.glob('*', root_dir=os.environ['IKM_RESULTS'] + "
           "'/smoke/notebooks')))")
    make(notebooks, "13_cost", see)
    make(notebooks, "99_report", see)
    assert runner.run_notebooks(SMOKE, train=False) == 1
    shown = capfd.readouterr().out
    for line in (r"01_bad FAILED after \d+ s: LookupError: no value 3", r"04_free ok after \d+ s",
                 r"02_dies FAILED after \d+ s: DeadKernelError: Kernel died"):
        assert re.search(line, shown), shown
    done = results / "smoke" / "notebooks"

    names = ["01_bad.ipynb", "02_dies.ipynb", "04_free.ipynb", "13_cost.ipynb", "99_report.ipynb"]
    assert sorted(path.name for path in done.iterdir()) == names
    assert printed(done / names[0]) == "" and "no value 3" in (done / names[0]).read_text()   # stopped at the error
    assert printed(done / names[1]) == "alive\n" and "Stopped: DeadKernelError" in (done / names[1]).read_text()
    python = runner.portable(os.path.abspath(sys.executable))
    assert printed(done / names[2]) == f"smoke notebooks\n./ikmlib/__init__.py {python}\n"
    assert printed(done / names[3]) == f"False {' '.join(names[:3])}\n"
    assert printed(done / names[4]) == f"False {' '.join(names[:4])}\n"
    for name in names:
        assert not any(str(place) in (done / name).read_text() for place in (runner.ROOT, notebooks, results))


def test_links_of_a_copy_lead_where_the_notebooks_links_lead(notebooks, results):
    path = make(notebooks, "05_links", "from IPython.display import Markdown\nMarkdown('[a](../results/PLAN.md)')")
    book = nbformat.read(path, as_version=4)
    book.cells.insert(0, nbformat.v4.new_markdown_cell("[read](../README.md), [next](06_x.ipynb), [web](https://a/../b)"))
    nbformat.write(book, path)
    make(notebooks, "06_x", "1")
    for executed, sibling in (["05"], "../../../notebooks/06_x.ipynb"), (["05", "06"], "06_x.ipynb"):
        assert runner.run_notebooks(SMOKE, executed, train=False) == 0
        cells = nbformat.read(results / "smoke" / "notebooks" / path.name, as_version=4).cells
        assert cells[0].source == f"[read](../../../README.md), [next]({sibling}), [web](https://a/../b)"
    assert cells[-1].outputs[0].data["text/markdown"] == "[a](../../../results/PLAN.md)"


def test_copies_name_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("IKM_DATA", str(tmp_path / "data"))
    told = f"{tmp_path}/data/Set5 {runner.ROOT}/a.py\\n{runner.ROOT}/b.py, in {tmp_path}/data."
    assert runner.portable(told) == "$IKM_DATA/Set5 ./a.py\\n./b.py, in $IKM_DATA."
    in_base64 = f"iVBO+{runner.ROOT}/4a {runner.ROOT}+xz/"
    assert runner.portable(in_base64) == in_base64
    assert runner.portable(f"{tmp_path}/data2 /x{runner.ROOT}") == f"{tmp_path}/data2 /x{runner.ROOT}"
    monkeypatch.setenv("HOME", "/")
    assert runner.portable("/etc/hosts") == "/etc/hosts"


def test_a_stop_ends_kernels_and_leaves_nothing_half_made(notebooks, results):
    kernel = results / "kernel"
    make(notebooks, "13_alone", "import os, pathlib, time",
         f"pathlib.Path({str(kernel)!r}).write_text(str(os.getpid()))\ntime.sleep(3600)")
    code = ("import pathlib, sys; from ikmlib.__main__ import main; from ikmlib.study import runner\n"
            f"runner.NOTEBOOKS = pathlib.Path({str(notebooks)!r})\n"
            "sys.exit(main(['run', '--profile', 'smoke', '--no-train']))")
    process = subprocess.Popen([sys.executable, "-c", code], cwd=runner.ROOT, stderr=subprocess.PIPE, text=True)
    while not kernel.exists() or not kernel.read_text():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 130 and "what is finished is kept, and the same command continues" in said
    assert list((results / "smoke" / "notebooks").iterdir()) == []
    end = time.monotonic() + 30
    while Path(f"/proc/{kernel.read_text()}").exists():   # until it notices that its parent is gone
        assert time.monotonic() < end
        time.sleep(0.05)
