"""The notebooks: short cells, linked, without outputs, and executed for real at the smoke profile."""
import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelspec import get_kernel_dict

from ikmlib import config
from ikmlib.__main__ import main
from ikmlib.study import notebook, training

NOTEBOOKS = sorted((config.ROOT / "notebooks").glob("*.ipynb"))
by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def text(path):
    """A notebook as git has it: reading it in JupyterLab, which saves outputs into the file, breaks no test."""
    words = ["git", "show", f":notebooks/{path.name}"]
    staged = subprocess.run(words, cwd=config.ROOT, capture_output=True, text=True, check=False)
    return path.read_text() if staged.returncode else staged.stdout


def cells(path, kind):
    return [c for c in json.loads(text(path))["cells"] if c["cell_type"] == kind]


@by_name
def test_short_cells_without_outputs(path):
    for cell in cells(path, "code"):
        assert not cell["outputs"] and cell["execution_count"] is None
        assert len("".join(cell["source"]).splitlines()) <= 40


def grown(node, own):
    """Names of lists that a piece of code adds to, but for `own`."""
    calls = [n.func for n in ast.walk(node) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
    lists = {f.value.id for f in calls if f.attr in ("append", "extend") and isinstance(f.value, ast.Name)}
    return lists - own - {"np"}


@by_name
def test_a_cell_run_twice_adds_nothing_twice(path):
    """No cell adds to a list that another cell made, and no function to one that is not its own."""
    for cell in cells(path, "code"):
        tree = ast.parse("".join(cell["source"]))
        for node in tree.body:
            scope = node if isinstance(node, ast.FunctionDef) else tree
            own = {n.id for n in ast.walk(scope) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
            assert not grown(node, own), f"{path.stem}: {grown(node, own)}"


@by_name
def test_kernel_metadata_are_those_that_jupyterlab_writes(path):
    """But for the Python's version, which the filter of .gitattributes takes out again."""
    spec, language = get_kernel_dict(), IPythonKernel.language_info
    assert json.loads(text(path))["metadata"] == {
        "kernelspec": {"display_name": spec["display_name"], "language": spec["language"], "name": "python3"},
        "language_info": {key: value for key, value in language.items() if key != "version"}}


@by_name
def test_first_code_cell_holds_the_parameters_as_literals(path):
    first = cells(path, "code")[0]
    assert first["metadata"]["tags"] == ["parameters"]
    for node in ast.parse("".join(first["source"])).body:
        assert isinstance(node, ast.Assign)
        ast.literal_eval(node.value)


@by_name
def test_skeleton_and_links(path):
    text = "\n".join("".join(c["source"]) for c in cells(path, "markdown"))
    assert text.startswith("# ") and "laim" in text
    for part in ("rediction", "## Verdict", "What this does not show"):
        assert part in text, f"{path.stem} has no {part!r}"
    for link in re.findall(r"\]\(([^)#]+\.(?:ipynb|md|csv))\)", text):
        assert (path.parent / link).exists(), f"{path.stem} links to {link}"


@by_name
def test_no_sentence_becomes_a_heading(path):
    """A line such as "#Params are ..." is a heading to some Markdown renderers."""
    for cell in cells(path, "markdown"):
        assert not re.search(r"^ *#+[^#\s]", "".join(cell["source"]), re.MULTILINE)


@pytest.mark.slow
def test_the_whole_study_at_smoke_then_again_without_training(results, capfd):
    """`run` trains, executes all notebooks, and writes the report; a second time every run is reused."""
    assert main(["run", "--profile", "smoke"]) == 0
    folder = results / "smoke"
    assert str(results / "REPORT.md") in capfd.readouterr().out
    for path in NOTEBOOKS:
        assert (folder / "notebooks" / path.name).exists()
    assert "No evidence yet" in (results / "REPORT.md").read_text()
    trained = notebook.read_claims(config.PROFILES["smoke"]).dropna(subset=["comparison"])
    assert len(trained) > 50 and set(trained.verdict) == {"not tested at this budget"}
    runs = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/run.json")}
    assert len(runs) == len(training.queue(config.PROFILES["smoke"]))
    assert main(["run", "--profile", "smoke", "--only", "04"]) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/run.json")} == runs


@pytest.mark.slow
@pytest.mark.parametrize(("words", "why"), [
    (("-p", "epochs", "3"), "unknown parameter epochs; this notebook takes profile, train"),
    (("-p", "profile", "smoke", "-p", "train", "false"), "train = 'false' is of type str; this notebook takes bool")])
def test_a_wrong_parameter_stops_a_notebook_under_papermill(results, tmp_path, words, why):
    source = config.ROOT / "notebooks" / "04_table3_attention.ipynb"
    done = subprocess.run(
        [sys.executable, "-m", "papermill", "-k", "python3", str(source),
         str(tmp_path / "out.ipynb"), *words],
        capture_output=True, text=True, check=False, cwd=Path(config.ROOT))
    assert done.returncode != 0 and why in done.stderr and not list(results.iterdir())
