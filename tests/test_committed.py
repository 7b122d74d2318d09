"""What is committed under results/ is what the committed records and notebooks give: nothing there is stale."""
import io

import pandas as pd
import pytest
from conftest import code

from ikmlib import config
from ikmlib.study import claims, records, report
from ikmlib.study.experiments import NOTEBOOKS

REPORTED = [path.parent.name for path in sorted((config.ROOT / "results").glob("*/REPORT.md"))]
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
    if not (folder / "pages" / f"{name}.json").exists():
        pytest.skip("not executed at this profile")
    tables = executed(name[:2], profile).tables   # measurements are the committed ones
    assert tables
    for key, frame in tables.items():
        assert_current(frame, folder / f"{key}.csv")


@pytest.mark.parametrize("profile", REPORTED)
def test_the_report_is_what_tables_and_records_give(profile):
    chosen, folder = config.PROFILES[profile], config.ROOT / "results" / profile
    assert (folder / "REPORT.md").read_text() == report.report_markdown(chosen)
    assert_current(claims.table(chosen), folder / "claims.csv")
    assert_current(records.all_records(chosen), folder / "runs.csv")


def test_the_report_over_all_profiles_is_current():
    assert (config.ROOT / "results" / "REPORT.md").read_text() == report.overall_markdown()


@pytest.mark.parametrize("path", sorted((config.ROOT / "results").glob("*/notebooks/*.ipynb")),
                         ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_executed_notebooks_are_of_the_committed_source(path):
    first, *rest = code(path)
    assert rest[0].startswith("# Parameters")
    assert [first, *rest[1:]] == code(config.ROOT / "notebooks" / path.name)
