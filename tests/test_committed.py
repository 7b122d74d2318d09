"""What is committed under results/ is what the committed records and notebooks give: nothing there is stale."""
import io
import json
import re

import pandas as pd
import pytest
from conftest import code

from ikmlib import config
from ikmlib.study import notebook, printed_costs, records, report, weights
from ikmlib.study.experiments import NOTEBOOKS

REPORTED = [path.parent.name for path in sorted((config.ROOT / "results").glob("*/claims.csv"))]
# Made of records alone; the other notebooks' tables are measurements, checked where they are made
OF_RECORDS = [name for name in NOTEBOOKS if name[:2] not in ("11", "99")]


@pytest.fixture(autouse=True)
def _committed(monkeypatch):
    monkeypatch.delenv("IKM_RESULTS", raising=False)


def assert_current(now, path):
    """A committed table equals the one of now, but that a row which still waits for runs may have counted fewer."""
    then = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype={"seeds": object, "images": object})
    text = io.StringIO(now.to_csv(index=False, float_format="%.6f", lineterminator="\n"))
    now = pd.read_csv(text, keep_default_na=False, na_values=[""], dtype={"seeds": object, "images": object})
    if "state" in now:   # which sets are installed here
        now, then = now.drop(columns="state"), then.drop(columns="state")
    if "runs" in now:
        for before, after in zip(then.runs, now.runs, strict=True):
            done, _, declared, *_ = f"{after} - - -".split()
            assert before == after or done != declared, f"{path} is stale: {after} are finished; execute its notebook"
        now, then = now.drop(columns="runs"), then.drop(columns="runs")
    pd.testing.assert_frame_equal(then, now, rtol=0, atol=2e-6, check_dtype=False, obj=str(path))


@pytest.mark.parametrize("profile", REPORTED)
@pytest.mark.parametrize("name", OF_RECORDS)
def test_tables_are_what_the_records_give(name, profile, executed):
    folder = config.ROOT / "results" / profile
    if not (folder / "notebooks" / f"{name}.ipynb").exists():
        pytest.skip("not executed at this profile")
    page = executed(name[:2], profile)   # measurements are the committed ones
    assert page.tables
    for key, frame in page.tables.items():
        assert_current(frame, folder / f"{key}.csv")
    rows = notebook.read_claims(page.profile)
    written = rows[rows.notebook == name]
    for claim, found in page.verdicts.items():
        then = written[written.claim == claim]
        assert set(then.verdict) == {found["verdict"]}, f"{claim} is stale: execute {name}"
        if "comparisons" in found:
            pd.testing.assert_frame_equal(then[["comparison", "paper", "ours", "low", "high"]].reset_index(drop=True),
                                          found["comparisons"][["comparison", "paper", "ours", "low", "high"]],
                                          rtol=0, atol=2e-6, check_dtype=False)


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2])
def test_costs_of_the_other_methods_are_those_that_are_counted_now(number):
    now = printed_costs.peer_costs(number)
    for path in (config.ROOT / "results").glob(f"*/table{number}_cost.csv"):
        assert_current(now, path)


@pytest.mark.parametrize("profile", REPORTED)
def test_the_table_of_runs_is_current(profile):
    assert_current(records.all_records(config.PROFILES[profile]), config.ROOT / "results" / profile / "runs.csv")


def test_the_report_is_what_claims_and_records_give():
    assert (config.ROOT / "results" / "REPORT.md").read_text() == report.markdown()


@pytest.mark.parametrize("path", sorted((config.ROOT / "results").glob("*/notebooks/*.ipynb")),
                         ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_executed_notebooks_are_of_the_committed_source(path):
    first, *rest = code(path)
    assert rest[0].startswith("# Parameters")
    source = config.ROOT / "notebooks" / path.name
    assert [first, *rest[1:]] == code(source)
    assert prose(path) == prose(source)


def prose(path):
    """The Markdown cells of a notebook without the targets of their links, which lead on from another folder."""
    cells = json.loads(path.read_text())["cells"]
    return [re.sub(r"\]\([^)]*\)", "]", "".join(cell["source"])) for cell in cells if cell["cell_type"] == "markdown"]


def test_the_model_card_has_a_row_for_every_network():
    card = (weights.folder() / "MODEL_CARD.md").read_text()
    for path in weights.folder().glob("*.safetensors"):
        assert f"\n| {path.name} |" in card, "run tools/model_card.py"
