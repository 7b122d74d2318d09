"""The claims' order and completeness, and which profile's evidence counts."""
import json

import pytest

from ikmlib import config
from ikmlib.config import PROFILES
from ikmlib.study import claims, report

CPU = PROFILES["cpu"]


def record(results, profile, notebook, verdicts, seeds=None, figures=()):
    """A notebook's manifest with the given verdicts, {claim: verdict}, and figures."""
    folder = results / profile / "pages"
    folder.mkdir(parents=True, exist_ok=True)
    entries = [{"name": name, "paper": "p", "ours": f"{name} at {profile}", "verdict": verdict, "because": "b",
                "seeds": seeds} for name, verdict in verdicts.items()]
    (folder / f"{notebook}.json").write_text(json.dumps(
        {"notebook": notebook, "profile": profile, "tables": [],
         "figures": [{"name": name, "caption": name} for name in figures], "claims": entries}))
    for name in figures:
        (results / profile / f"{name}.png").touch()


def test_all_claims_in_order_and_the_unrecorded_are_not_tested(results):
    table = claims.table(CPU)
    assert list(table.claim) == [f"C{i}" for i in range(1, 13)] == list(claims.CLAIMS)
    assert set(table.verdict) == {claims.UNTESTED} and set(table.ours) == {"–"}
    record(results, "cpu", "00_protocol", {"P1": "supported"})
    record(results, "cpu", "01_fig1_synthetic_1d", {"C12": "not supported"})
    record(results, "cpu", "08_fig9_threshold", {"C4, zero": "supported", "C4, median": "mixed"}, seeds=3)
    table = claims.table(CPU)
    assert list(table.claim) == ["C1", "C2", "C3", "C4, zero", "C4, median", *(f"C{i}" for i in range(5, 13)), "P1"]
    rows = table.set_index("claim")
    assert rows.ours["C4, zero"] == "C4, zero at cpu" and rows.rests_on["C4, zero"] == "3 seeds"
    assert rows.rests_on["C12"] == "–" and rows.verdict["C4, median"] == "mixed"
    assert claims.in_words("C4, zero") == "C4 good thresholds (zero)" and claims.in_words("P1") == "P1"
    assert claims.in_words("E1, own attention, U-HDB") == "E1 own attention is why (U-HDB)"


def test_every_claim_names_a_notebook_of_the_study():
    for _, notebook in claims.CLAIMS.values():
        assert (config.ROOT / "notebooks" / f"{notebook}.ipynb").exists()


@pytest.mark.parametrize(("verdicts", "chosen"), [
    ({"cpu": "supported"}, "cpu"),
    ({"cpu": "supported", "small": "not supported"}, "small"),
    ({"cpu": "supported", "cpu-long": "undecided"}, "cpu-long"),                # whatever the verdict there
    ({"cpu": "supported", "small": "not supported", "paper": "mixed"}, "paper"),
    ({"cpu": "supported", "paper": claims.UNTESTED}, "cpu"),                    # a verdict before a larger budget
    ({"cpu": claims.UNTESTED, "small": claims.UNTESTED}, "small"),
    ({"smoke": "supported", "cpu": claims.UNTESTED}, "cpu"),                    # smoke is never evidence
    ({"smoke": "supported"}, "–"),
])
def test_the_best_evidence_is_the_largest_budget_with_a_verdict(results, verdicts, chosen):
    for profile, verdict in verdicts.items():
        record(results, profile, "09_fig10_iso_vs_go", {"C5": verdict})
    row = claims.best().set_index("claim").loc["C5"]
    assert row.profile == chosen and row.ours == ("–" if chosen == "–" else f"C5 at {chosen}")
    assert row.verdict == verdicts.get(chosen, claims.UNTESTED)


def test_smaller_budgets_stay_beside_the_largest(results):
    for profile, verdict in (("cpu", "supported"), ("cpu-long", "undecided"), ("small", claims.UNTESTED)):
        record(results, profile, "09_fig10_iso_vs_go", {"C5": verdict}, seeds=3)
    row = claims.best().set_index("claim").loc["C5"]
    assert (row.profile, row.verdict) == ("cpu-long", "undecided")
    assert row.at_smaller_budgets == "cpu: supported (C5 at cpu)"


def test_a_larger_budget_that_trained_nothing_is_passed_over(results):
    record(results, "cpu", "04_table3_attention", {"C1": claims.UNTESTED}, seeds=1)
    record(results, "paper", "04_table3_attention", {"C1": claims.UNTESTED}, seeds=0)
    row = claims.best().set_index("claim").loc["C1"]
    assert (row.profile, row.rests_on) == ("cpu", "1 seed")
    assert claims.table(PROFILES["paper"]).rests_on[0] == claims.UNTRAINED


def test_the_best_evidence_is_chosen_claim_by_claim(results):
    record(results, "cpu", "08_fig9_threshold", {"C4, zero": "supported", "C4, median": "supported"})
    record(results, "paper", "08_fig9_threshold", {"C4, zero": "mixed", "C4, median": claims.UNTESTED})
    best = claims.best().set_index("claim").profile
    assert (best["C4, zero"], best["C4, median"], best["C1"]) == ("paper", "cpu", "–") and "C4" not in best


def test_the_top_level_report_labels_every_row_and_knows_when_there_is_none(results):
    record(results, "smoke", "01_fig1_synthetic_1d", {"C12": "supported"})
    assert "No evidence yet" in report.write_overall().read_text()
    record(results, "cpu", "01_fig1_synthetic_1d", {"C12": "not supported"})
    record(results, "small", "09_fig10_iso_vs_go", {"C5": "mixed"})
    path = report.write_overall()
    text = path.read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()
            if line.startswith("| C")]
    assert path == results / "REPORT.md" and "smoke" not in text and len(rows) == 12
    assert rows[4][1:5:2] == ["**mixed**", "C5 at small"] and rows[11][3:5] == ["C12 at cpu", "cpu"]
    assert rows[0][1:6] == [f"**{claims.UNTESTED}**", "–", "–", "–", "–"]
    assert "(cpu/REPORT.md)" in text and "(small/REPORT.md)" in text


def test_an_artefact_that_nobody_trained_is_one_line_of_the_report(results):
    record(results, "cpu", "09_fig10_iso_vs_go", {"C5": claims.UNTESTED}, seeds=0, figures=["fig10_batches"])
    text = report.report_markdown(CPU)
    assert "None of its comparisons is complete at this budget" in text and "fig10_batches.png" not in text
