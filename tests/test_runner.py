"""The notebook runner, with real kernels on tiny notebooks."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import nbformat
import pytest

from ikmlib.study import runner

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
    """An empty folder of notebooks, and a report that only leaves its name."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.setattr(runner, "NOTEBOOKS", folder)

    def write_report(profile: str) -> Path:
        report = results / profile / "REPORT.md"
        report.write_text("a report")
        return report

    monkeypatch.setitem(sys.modules, "ikmlib.study.report", types.SimpleNamespace(
        write_report=write_report, write_overall=lambda: results / "REPORT.md"))
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
    assert names("99,00") == names("99", "00") == ["00_protocol", "99_report"]
    with pytest.raises(ValueError, match="no notebook '05'; there are: 00_protocol, 04_table3, 99_report"):
        names("04", "05")


def test_plan_passes_train_where_it_is_known(notebooks):
    make(notebooks, "00_a", parameters='profile = "smoke"')
    make(notebooks, "01_b")
    first, second = runner.plan("cpu", train=False)
    assert first.parameters == {"profile": "cpu"} and second.parameters == {"profile": "cpu", "train": False}


def test_unknown_profile_is_refused(notebooks):
    with pytest.raises(ValueError, match="unknown profile 'huge'; allowed: auto, smoke"):
        runner.run_notebooks("huge")


def test_kernel_is_this_python_or_none(tmp_path, monkeypatch):
    spec = tmp_path / "kernels" / "ikm" / "kernel.json"
    spec.parent.mkdir(parents=True)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))

    def kernel(program: str) -> str:
        spec.write_text(json.dumps({"argv": [program, "-m", "ipykernel_launcher"], "display_name": "x"}))
        return runner.kernel_name()

    assert kernel(sys.executable) == "ikm"
    assert kernel("python") == "ikm"
    other = tmp_path / "bin" / "python"   # another environment on the same binary
    other.parent.mkdir()
    other.symlink_to(os.path.realpath(sys.executable))
    assert kernel(str(other)) == "python3"
    (tmp_path / "kernels" / "python3").mkdir()
    (tmp_path / "kernels" / "python3" / "kernel.json").write_text(spec.read_text())
    beside = other.with_name("python9")   # another program in the same folder
    beside.symlink_to("/bin/sh")
    monkeypatch.setattr(sys, "executable", str(beside))
    with pytest.raises(RuntimeError, match="no Jupyter kernel runs .*python9"):
        runner.kernel_name()


def test_a_run_with_a_failure(notebooks, results, capsys):
    """01 fails and stops no other; 13 and 99 run after all others, one by one."""
    make(notebooks, "01_bad", "value = 3\nraise LookupError(f'no value {value}')", "print('not reached')")
    make(notebooks, "04_free", "import os, sys, importlib.util as util",
         "print(profile, train, os.path.basename(os.getcwd()))",
         "print(util.find_spec('ikmlib').origin, os.path.abspath(sys.executable))")
    see = "import os, glob; print(*sorted(glob.glob('*', root_dir=os.environ['IKM_RESULTS'] + '/smoke/notebooks')))"
    make(notebooks, "13_cost", see)
    make(notebooks, "99_report", see)
    assert runner.run_notebooks("smoke", train=False) == 1
    shown = capsys.readouterr().out
    assert "LookupError: no value 3\n    in cell [3]:\n    | value = 3\n    | raise LookupError" in shown
    assert "04_free ok in" in shown and "\nnot ok: 01_bad\n" in shown and shown.count("not ok:") == 1
    made = results / "smoke"
    assert shown.splitlines()[-1] == f"report: {made / 'REPORT.md'} and {made / 'report.html'}"

    done = made / "notebooks"
    assert sorted(path.stem for path in done.iterdir()) == ["01_bad", "04_free", "13_cost", "99_report"]
    assert "no value 3" in (bad := (done / "01_bad.ipynb").read_text()) and "not reached" in bad
    assert printed(done / "01_bad.ipynb") == ""   # stopped at the error
    python = runner._portable(os.path.abspath(sys.executable))
    assert printed(done / "04_free.ipynb") == f"smoke False notebooks\n./ikmlib/__init__.py {python}\n"
    assert printed(done / "13_cost.ipynb") == "01_bad.ipynb 04_free.ipynb\n"
    assert printed(done / "99_report.ipynb") == "01_bad.ipynb 04_free.ipynb 13_cost.ipynb\n"
    text = (done / "04_free.ipynb").read_text()
    assert str(runner.ROOT) not in text and str(notebooks) not in text


def test_success_selected_and_dead_kernel(notebooks, results, capsys):
    """A kernel that dies is a failure like any other."""
    make(notebooks, "01_a", "raise ValueError")
    make(notebooks, "02_b", "print(1 + 1)")
    make(notebooks, "03_dies", "print('alive')", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert runner.run_notebooks("smoke", only=["02"]) == 0
    assert printed(results / "smoke" / "notebooks" / "02_b.ipynb") == "2\n"
    assert runner.run_notebooks("smoke", only=["03_dies"]) == 1
    assert "DeadKernelError: Kernel died" in capsys.readouterr().out
    assert "Stopped: DeadKernelError" in (results / "smoke" / "notebooks" / "03_dies.ipynb").read_text()


@pytest.mark.parametrize("cuda, said", [
    (False, "profile smoke (auto: no CUDA device found)"), (True, "profile small (auto: a CUDA device found)")])
def test_auto_says_what_it_chose(notebooks, results, monkeypatch, capsys, cuda, said):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(runner, "execute", lambda path, target, parameters: target.parent.mkdir(parents=True))
    make(notebooks, "00_a")
    assert runner.run_notebooks("auto") == 0
    assert capsys.readouterr().out.startswith(said)


def test_portable_names_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("IKM_DATA", str(tmp_path / "data"))
    png = {"image/png": f"{runner.ROOT}/", "n": 1}   # data that only looks like a path
    told = [{"text": f"{tmp_path}/data/Set5 {runner.ROOT}/a.py, in {tmp_path}/data."} | png]
    assert runner._portable(told) == [{"text": "$IKM_DATA/Set5 ./a.py, in $IKM_DATA."} | png]
    assert runner._portable(f"{tmp_path}/data2 /x{runner.ROOT}") == f"{tmp_path}/data2 /x{runner.ROOT}"
    monkeypatch.setenv("HOME", "/")
    assert runner._portable("/etc/hosts") == "/etc/hosts"


@pytest.mark.parametrize("notebook", ["13_alone", "01_together"])
def test_interrupt_stops_cleanly(notebooks, results, notebook):
    """Ctrl-C in the middle of a cell: exit code 130, the kernel ends, nothing half-made is left."""
    kernel = results / "kernel"
    make(notebooks, notebook, f"import os, pathlib, time\npathlib.Path({str(kernel)!r}).write_text(str(os.getpid()))\n"
                              "time.sleep(3600)")
    make(notebooks, "14_next", "import time; time.sleep(3600)")
    code = ("import pathlib, sys; from ikmlib.study import runner\n"
            f"runner.NOTEBOOKS = pathlib.Path({str(notebooks)!r})\n"
            f"only = ['13'] if {notebook == '13_alone'} else []\n"
            "if __name__ == '__main__': sys.exit(runner.run_notebooks('smoke', only))")
    process = subprocess.Popen([sys.executable, "-c", code], cwd=runner.ROOT, stdout=subprocess.PIPE, text=True)
    while not kernel.exists() or not kernel.read_text():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    shown, _ = process.communicate()
    assert process.returncode == runner.INTERRUPTED
    assert "finished runs are kept, the same command continues" in shown and " ok in " not in shown
    assert list((results / "smoke" / "notebooks").iterdir()) == []
    while Path(f"/proc/{kernel.read_text()}").exists():   # it notices that its parent is gone
        time.sleep(0.05)
