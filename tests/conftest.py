"""What several tests share."""
from __future__ import annotations

import ast
import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from hypothesis import strategies as st

from ikmlib import config
from ikmlib.models import Architecture
from ikmlib.study import notebook
from ikmlib.study.records import Run

# Where a shell started the tests by `&`, Ctrl-C is ignored, and would be in the programs that they start and stop
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="module")
def without_gpu(request: pytest.FixtureRequest) -> Iterator[None]:
    """On a machine with a GPU, all tests but those of test_gpu.py run on the CPU, and so do the programs they start."""
    with pytest.MonkeyPatch.context() as patch:
        if request.module.__name__ != "test_gpu":
            patch.setattr(torch.cuda, "is_available", lambda: False)
            patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of records, in the place of the project's `results/`."""
    folder = tmp_path / "results"
    folder.mkdir()
    monkeypatch.setenv("IKM_RESULTS", str(folder))
    return folder


TINY = Architecture(blocks=1, depths=(1, 1), channels=8, growth=4)


def tiny(seed=0, updates=6, attention="ikm"):
    """A run of a fraction of a second."""
    return Run("smoke", replace(TINY, attention=attention), 2, seed, updates, 2, 8, ("embedded-train",))


@st.composite
def garbled(draw, good: bytes) -> bytes:
    """The contents of a file, cut somewhere, with some bytes changed."""
    data = bytearray(good[:draw(st.sampled_from([len(good), len(good)]) | st.integers(0, len(good)))])
    for at, value in draw(st.lists(st.tuples(st.integers(0, len(good)), st.integers(0, 255)), max_size=8)):
        data[at:at + 1] = bytes([value])
    return bytes(data)


def code(notebook: Path) -> list[str]:
    """The code cells of a notebook."""
    cells = json.loads(notebook.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def definitions(number: str) -> SimpleNamespace:
    """What a notebook defines: its imports, functions, classes and CONSTANTS; nothing else of its code is run."""
    path, = (config.ROOT / "notebooks").glob(f"{number}_*.ipynb")
    kept = [node for node in ast.parse("\n".join(code(path))).body
            if isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef))
            or isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "").isupper()]
    space = {"__name__": "__main__"}
    exec(compile(ast.Module(kept, []), path.name, "exec", dont_inherit=True), space)
    return SimpleNamespace(**space)


class Kept(notebook.Page):
    """A recorded page that keeps a notebook's tables and verdicts instead of showing them."""

    def __init__(self, name, profile):
        super().__init__(name, profile, recorded=True, anew=False)
        self.tables, self.verdicts = {}, {}

    def table(self, frame, name, caption=""):
        self.tables[name] = frame

    def measured(self, name, measure):
        """The measurement of this profile that the test left or that is committed, where there is one: no test measures
        it again."""
        roots = [config.results_root(), *[config.ROOT / "results"] * self.profile.evidence]   # smoke is not committed
        found = [path for root in roots if (path := root / self.profile.name / f"{name}.csv").exists()]
        return pd.read_csv(found[0]) if found else measure()

    def figure(self, figure, name, caption="", **options):
        if figure is not None:   # something is known
            figure.canvas.draw()
        plt.close("all")

    def verdict(self, claim, **found):
        self.verdicts[claim] = found


@pytest.fixture
def executed(monkeypatch):
    """executed("04", "cpu"): the `Kept` page of a notebook whose code ran in this process, on the records there are;
    every cell so many `times` in a row, as a reader may run it."""
    def run(number: str, profile: str, times: int = 1) -> Kept:
        path, = (config.ROOT / "notebooks").glob(f"{number}_*.ipynb")
        page = Kept(path.stem, config.PROFILES[profile])
        monkeypatch.setattr(notebook, "open_page", lambda *words, **options: page)
        first, *rest = code(path)
        space = {"__name__": "__main__"}   # without IPython's names: a notebook is a script, too
        for cell in (first, f"profile, train = {profile!r}, False", *rest):
            for _ in range(times):
                exec(cell, space)
        plt.close("all")
        return page

    return run
