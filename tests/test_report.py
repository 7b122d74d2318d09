"""Pages, parameters, tables as people read them, claims, and a report made only of claims and records."""
import json
import re

import numpy as np
import pandas as pd
import pytest
from conftest import definitions

from ikmlib import config, datasets
from ikmlib.files import write_csv, write_text
from ikmlib.study import comparisons, experiments, notebook, records, report, stats
from ikmlib.study.comparisons import JUDGED
from ikmlib.study.records import SCORES

random = np.random.default_rng(0)


def test_readable_twins():
    frame = pd.DataFrame({"block": ["RB"], "psnr_paper": [37.474], "psnr_ours": [35.2], "psnr_sd": [0.034],
                          "ssim_ours": [np.nan], "seeds": [3], "gain_db_ours": [0.2], "params_k": [1390.915]})
    shown = notebook.readable(frame)
    assert dict(shown.iloc[0]) == {"block": "RB", "psnr paper": "37.47", "psnr ours": "35.20 ± 0.03",
                                   "ssim ours": "–", "seeds": "3", "gain db ours": "+0.200", "params k": "1390.9"}
    assert notebook.markdown_table(frame).splitlines()[2] == "| RB | 37.47 | 35.20 ± 0.03 | – | 3 | +0.200 | 1390.9 |"


OWN = 'profile = "auto"\ntrain = True\nupdates = 100\npictures = []\nofficial = {}\nrate = 0.5'


def given(injected):
    return notebook.check_parameters(["", OWN, f"# Parameters\n{injected}\n"])


def test_parameters_have_the_types_of_the_notebooks_own():
    assert notebook.check_parameters(["", OWN]) == {}
    assert given('profile = "smoke"\ntrain = False') == {"profile": "smoke", "train": False}
    meant = given('updates = 100.0\npictures = "one.jpg"\nofficial = {"2": "a.pth"}\nrate = 1')
    assert meant == {"updates": 100, "pictures": ["one.jpg"], "official": {2: "a.pth"}, "rate": 1.0}
    assert type(meant["updates"]) is int and type(meant["rate"]) is float
    with pytest.raises(ValueError, match="unknown parameter epochs; this notebook takes official, pictures, profile"):
        given("epochs = 3")


@pytest.mark.parametrize(("injected", "why"), [
    ('train = "false"', "train = 'false' is of type str; this notebook takes bool, such as True"),
    ('train = "no"', "takes bool"), ("train = 0", "of type int"), ("updates = True", "takes int, such as 100"),
    ("updates = 0.5", "updates = 0.5 is of type float; this notebook takes int"), ("profile = 5", "takes str"),
    ("profile = None", "NoneType"), ("pictures = 3", "takes list"), ("rate = float('nan')", "malformed")])
def test_a_parameter_of_another_type_is_refused(injected, why):
    with pytest.raises(ValueError, match=why):
        given(injected)


def judged(*rows):
    """Comparisons as JUDGED, each from (name, paper, ours, outcome, runs)."""
    return pd.DataFrame([(name, paper, ours, ours - 0.01, ours + 0.01, ours - 0.02, ours + 0.02, 0.015, 2 * ours,
                          2 * ours - 0.03, 2 * ours + 0.03, "dB", outcome, 3, runs)
                         for name, paper, ours, outcome, runs in rows], columns=JUDGED)


WORDS = {"paper": "p", "ours": "o", "because": "b"}


def test_a_page_writes_tables_figures_and_a_row_a_comparison(results, capsys):
    import matplotlib.pyplot as plt

    page = notebook.open_page("04_table3_attention", profile="cpu")
    frame = pd.DataFrame({"block": ["RB"], "psnr_ours": [31.25]})
    page.table(frame, "numbers", "Some numbers")
    pd.testing.assert_frame_equal(pd.read_csv(results / "cpu" / "numbers.csv"), frame)
    assert page.figure(plt.figure(), "picture", "A picture").data == "*A picture*"
    assert "Image object" in capsys.readouterr().out   # what display prints outside a notebook
    assert (results / "cpu" / "picture.png").read_bytes()[:4] == b"\x89PNG"
    assert "waits for its declared runs" in page.figure(None, "picture", "A picture").data
    assert not (results / "cpu" / "picture.png").exists()
    with pytest.raises(ValueError, match="'proven'"):
        page.verdict("C1", verdict="proven", **WORDS)
    two = judged(("RB", 0.05, 0.04, "holds", "10 of 10 runs"), ("DB", np.nan, np.nan, "waits", "6 of 10 runs"))
    shown = page.verdict("C1", verdict="mixed", comparisons=two, **WORDS).data
    assert "| RB | +0.05 | +0.040 [+0.030, +0.050] dB |" in shown and "6 of 10 runs" in shown
    page.verdict("C12", verdict="not testable", **WORDS)
    rows = notebook.read_claims(page.profile)
    assert list(rows.claim) == ["C1", "C1", "C12"] and list(rows.columns) == notebook.CLAIMS
    assert list(rows.outcome[:2]) == ["holds", "waits"] and rows.ours.isna().tolist() == [False, True, True]
    assert list(rows.verdict) == ["mixed", "mixed", "not testable"] and rows.seeds[0] == 3


def test_a_notebook_replaces_its_own_rows_and_no_others(results):
    for name, claim in (("09_fig10_iso_vs_go", "C5"), ("04_table3_attention", "C1"), ("04_table3_attention", "C2")):
        notebook.open_page(name, profile="cpu").verdict(claim, verdict="mixed", **WORDS)
    rows = notebook.read_claims(config.PROFILES["cpu"])
    assert list(rows.claim) == ["C2", "C5"]   # of 04 what it wrote when it was last executed


def test_smoke_carries_no_verdict_but_what_is_the_same_everywhere_does(results):
    page = notebook.open_page("00_protocol", profile="smoke")
    page.verdict("P1", verdict="supported", any_profile=True, **WORDS)
    page.verdict("C11", verdict="supported", **WORDS)
    assert list(notebook.read_claims(page.profile).verdict) == ["supported", stats.UNTESTED]


def test_figures_do_not_depend_on_the_users_matplotlibrc(results, monkeypatch):
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "text.usetex", True)
    notebook.open_page("13_cost", profile="smoke")
    assert not matplotlib.rcParams["text.usetex"]


def test_a_recorded_page_shows_what_is_on_disk_and_writes_nothing(results):
    import matplotlib.pyplot as plt

    written = notebook.open_page("13_cost", profile="cpu")
    first = written.measured("cost", lambda: pd.DataFrame({"ms": [1.5]}))
    written.table(first, "cost")
    written.verdict("C11", verdict="supported", **WORDS)
    before = {path: path.stat().st_mtime_ns for path in results.rglob("*") if path.is_file()}
    page = notebook.open_page("13_cost", profile="recorded")
    assert page.profile.name == "cpu" and page.measured("cost", None).ms.item() == 1.5   # no measurement is made
    page.table(pd.DataFrame({"ms": [9.0]}), "cost")
    page.figure(plt.figure(), "picture")
    page.verdict("C11", verdict="mixed", **WORDS)
    assert {path: path.stat().st_mtime_ns for path in results.rglob("*") if path.is_file()} == before
    again = notebook.open_page("13_cost", profile="cpu", train=False)
    assert again.measured("cost", None).ms.item() == 1.5 and not again.recorded


def test_a_recorded_page_never_measures(results):
    page = notebook.open_page("13_cost", profile="recorded")
    with pytest.raises(FileNotFoundError, match=r"cost\.csv is not measured yet: .* --profile cpu --only 13"):
        page.measured("cost", lambda: pytest.fail("it was measured"))


def test_an_unknown_profile_is_refused_with_all_that_are_allowed():
    allowed = ", ".join(["recorded", "auto", *config.PROFILES])
    with pytest.raises(ValueError, match=f"unknown profile 'huge'; allowed: {allowed}$"):
        notebook.open_page("13_cost", profile="huge")


def executed_at(results, profile, name):
    path = results / profile / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")


def test_recorded_opens_the_profile_that_holds_the_most_verdicts(results):
    name = "02_table1_lightweight"
    assert notebook.recorded_profile(name).name == "cpu"   # nothing is there
    executed_at(results, "cpu-long", name)
    executed_at(results, "cpu", name)
    assert notebook.recorded_profile(name).name == "cpu-long"
    verdict_at("cpu", name, {"C9, PSNR": "undecided"})
    verdict_at("cpu-long", name, {"C9, PSNR": stats.UNTESTED})   # complete or not, it holds no verdict
    verdict_at("cpu-long", "04_table3_attention", {"C1, U-HDB": "mixed"})
    assert notebook.recorded_profile(name).name == "cpu"
    verdict_at("cpu", "04_table3_attention", {"C1, U-HDB": "mixed"})
    assert notebook.recorded_profile("04_table3_attention").name == "cpu-long"
    verdict_at("cpu", "04_table3_attention", {"C1, U-HDB": "mixed", "C2": "supported"})
    executed_at(results, "cpu-long", "99_report")
    assert {notebook.recorded_profile(n).name for n in ("04_table3_attention", "99_report")} == {"cpu"}   # more there


# --- the report -----------------------------------------------------------------------------------------------------


def verdict_at(profile, name, verdicts):
    """Verdicts {claim: verdict} of a notebook at a profile."""
    page = notebook.Page(name, config.PROFILES[profile])
    for claim, verdict in verdicts.items():
        page.verdict(claim, paper="p", ours=f"{claim} at {profile}", because="b", verdict=verdict, any_profile=True)


@pytest.mark.parametrize(("verdicts", "chosen"), [
    ({"cpu": "supported"}, "cpu"),
    ({"cpu": "supported", "cpu-long": "undecided"}, "cpu-long"),                # whatever the verdict there
    ({"cpu": "supported", "small": "not supported", "paper": "mixed"}, "paper"),
    ({"cpu": "supported", "paper": stats.UNTESTED}, "cpu"),                     # a verdict before a larger budget
    ({"cpu": stats.WAITS, "small": stats.UNTESTED}, "cpu"),                     # what is finished first
    ({"smoke": "supported", "cpu": stats.UNTESTED}, "cpu"),                     # smoke is never evidence
])
def test_the_best_evidence_is_the_largest_budget_with_a_verdict(results, verdicts, chosen):
    for profile, verdict in verdicts.items():
        verdict_at(profile, "09_fig10_iso_vs_go", {"C5": verdict})
    row, = report.best().itertuples()
    assert (row.profile, row.ours_words, row.verdict) == (chosen, f"C5 at {chosen}", verdicts[chosen])


def test_claims_are_in_the_papers_order_each_from_its_own_best_profile(results):
    verdict_at("cpu", "00_protocol", {"P1": "supported"})
    verdict_at("cpu", "01_fig1_synthetic_1d", {"C12": "not testable"})
    verdict_at("cpu", "08_fig9_threshold", {"C4, zero": "supported", "C4, median": "supported", "X7": "mixed"})
    verdict_at("paper", "08_fig9_threshold", {"C4, zero": "mixed", "C4, median": stats.UNTESTED})
    rows = report.best()
    assert list(rows.claim) == ["C4, zero", "C4, median", "C12", "P1", "X7"]
    assert list(rows.profile) == ["paper", "cpu", "cpu", "cpu", "cpu"]
    assert [report.in_words(claim) for claim in ("C4, zero", "E1, own attention, U-HDB", "D1", "X7")] == [
        "C4 threshold 0 is at least as good", "E1 IKM gains by the image's own attention (U-HDB)",
        "D1 can be put into another network", "X7"]


def test_the_picture_of_all_claims_shows_what_has_a_result_or_a_printed_number(results):
    import matplotlib.pyplot as plt

    book = definitions("99")
    assert book.figure_claims(report.best()) is None
    page = notebook.Page("04_table3_attention", config.PROFILES["cpu"])
    for claim, rows in (("C1", [("RB: IKM − none", 0.05, np.nan, "waits", "6 of 10 runs"),
                                ("DB: IKM − none", 0.08, 0.04, "holds", "")]),
                        ("C7", [("U-HDN − V1", np.nan, np.nan, "waits", "")]),
                        ("C9, PSNR", [("U-HDN+IKM − IDN", 0.2, 0.875, "holds", "")])):
        page.verdict(claim, verdict="mixed", comparisons=judged(*rows), **WORDS)
    axes, = book.figure_claims(report.best(), 3.9).axes
    gains = book.figure_claims(report.gains()[::-1], 6.2).axes[0].texts   # in the order given; what waits is out
    assert gains[0].get_text() == "DB: IKM − none"
    assert report.once(report.best()[::-1]).comparison.tolist() == report.once(report.best()).comparison.tolist()[::-1]
    assert [text.get_text() for text in axes.texts] == [
        "RB: IKM − none (6 of 10 runs)", "C1 IKM beats vanilla convolution: mixed (cpu)", "DB: IKM − none",
        "U-HDN+IKM − IDN", "C9 U-HDN+IKM has the best PSNR: mixed (cpu)"]
    paper, ours = (line.get_xdata() for line in axes.lines[:2])
    np.testing.assert_equal((list(paper), list(ours)), ([0.05, 0.08, 0.2], [np.nan, 0.04, 0.875]))
    np.testing.assert_equal(axes.lines[4].get_xdata().astype(float), [np.nan, 0.08, 1.75])   # on Set5 alone
    assert axes.get_xlim()[0] < 0.03 and axes.get_xlim()[1] > 1.78   # nothing lies outside
    plt.close("all")


def test_the_ladder_goes_from_the_smallest_budget_to_the_largest_and_on_to_the_authors_weights(results):
    import matplotlib.pyplot as plt

    book, page = definitions("99"), notebook.Page("99_report", config.PROFILES["cpu"])
    assert book.ladder(page).empty and book.figure_ladder(book.ladder(page)) is None
    write_csv(results / "cpu" / "authors_own.csv", pd.DataFrame(
        [("CoMo-S x2", "whole images", "own - constant", 119, -0.02, -0.03, -0.01)],
        columns=["network", "view", "contrast", "images", "difference_db", "low_db", "high_db"]))
    assert len(book.ladder(page)) == 1 and book.figure_ladder(book.ladder(page)) is None   # no rung of this study
    for profile, gain in (("cpu-long", 0.01), ("cpu", 0.04)):
        for name, claim in (("04_table3_attention", "C1"), ("12_controls", "E1, own attention, U-HDB")):
            notebook.Page(name, config.PROFILES[profile]).verdict(claim, verdict="mixed", **WORDS, comparisons=judged(
                (f"{claim[:2]} of U-HDB", np.nan, gain, "undecided", ""), ("RB", np.nan, np.nan, "waits", "")))
    rungs = book.ladder(page)
    assert [*zip(rungs.budget, rungs.comparison, rungs.ours, strict=True)] == [
        ("cpu", "C1 of U-HDB", 0.04), ("cpu", "E1 of U-HDB", 0.04), ("cpu-long", "C1 of U-HDB", 0.01),
        ("cpu-long", "E1 of U-HDB", 0.01), ("authors' weights", "CoMo-S x2: own − constant at test", -0.02)]
    gain, attention, scale = book.figure_ladder(rungs).axes   # a panel a question
    assert [text.get_text() for text in scale.get_xticklabels()] == ["cpu", "cpu-long", "authors' weights"]
    shown = [line.get_ydata().tolist() for axes in (gain, attention) for line in axes.lines if line.get_marker() == "o"]
    assert shown == [[0.04, 0.01], [0.04, 0.01], [-0.02]] and scale.get_legend() is None
    plt.close("all")


def test_ours_on_set5_alone_is_of_the_images_that_the_paper_scores(results):
    plan = experiments.planned(config.PROFILES["cpu"], "same_budget")
    trained(plan.run)
    asked, scores = {"a": comparisons.minus("U-HDN+IKM", "IDN")}, records.scores(plan)
    of = [np.stack([lines_of(run, "Set5")[:, 0] for run in plan.run[plan.network == name]])
          for name in ("U-HDN+IKM", "IDN")]
    found = comparisons.compare(scores, asked)
    assert found["a"].set5 == pytest.approx(stats.paired(of[0] - of[1]).interval) and found["a"].images == 105
    row, = comparisons.claim(found, config.PROFILES["cpu"], paper="p", holds="h.")["comparisons"].itertuples()
    assert (row.set5, row.set5_low, row.set5_high) == found["a"].set5
    assert np.isnan(comparisons.compare(scores, asked, sets=["BSD100"])["a"].set5).all()


def test_the_first_sentences_count_verdicts_and_tell_every_complete_gain(results):
    added, decided, waiting = report.opening().split("\n\n")
    assert decided.endswith("claims: none. On this study's own questions: none.")
    assert "of 0 complete comparisons, the interval lies above 0 in 0, below 0 in 0, and contains 0 in 0." in added
    assert waiting.endswith("0 of 324 runs.") and report.primary().endswith("Finished: 0 of 20 runs.")
    verdict_at("cpu", "08_fig9_threshold", {"C4, zero": "supported", "C4, median": "not supported"})
    verdict_at("cpu", "09_fig10_iso_vs_go", {"C5": stats.UNTESTED})
    verdict_at("cpu", "03_table2_high_fidelity", {"C9, Table II": stats.UNTESTED})
    verdict_at("cpu", "00_protocol", {"P1": "supported"})   # not the paper's
    page = notebook.Page("02_table1_lightweight", config.PROFILES["cpu"])
    third = judged(("RB: IKM − none", 0.05, 0.25, "undecided", "")).assign(seeds=5)
    notebook.Page("04_table3_attention", config.PROFILES["cpu"]).verdict(
        "C1", verdict="mixed", comparisons=third, **WORDS)
    for claim, gain, outcome in (("Beside C9, IKM in U-HDN", 0.5, "holds"), ("C1, U-HDN", np.nan, "waits")):
        page.verdict(claim, verdict="exploratory" if outcome == "holds" else stats.WAITS, **WORDS,
                     comparisons=judged(("U-HDN+IKM − U-HDN", np.nan, gain, outcome, "1 of 4 runs")))
    write_csv(results / "cpu" / "authors_own.csv", pd.DataFrame(
        [("CoMo-S x2", view, contrast, 119, mean, mean - 0.01, mean + 0.01)
         for view, mean in (("48 x 48 patches", -0.03), ("whole images", -0.02))
         for contrast in ("own - constant", "own - frozen")],
        columns=["network", "view", "contrast", "images", "difference_db", "low_db", "high_db"]))
    trained(experiments.planned(config.PROFILES["cpu"], "same_budget").run)
    verdict_at("cpu", "12_controls", {"E1, own, RB": "not supported", "E1, own, U-HDB": stats.WAITS})
    added, table, legend, authors, decided, waiting = report.opening().split("\n\n")
    assert ("of 2 complete comparisons, the interval lies above 0 in 2, below 0 in 0, and contains 0 in 0. E1, that a "
            "gain comes from the image's own attention, is not supported in RB.") in added
    assert table.splitlines()[2:] == [   # Table III's first
        "| C1 RB: IKM − none | cpu | 5 | +0.05 | +0.250 [+0.240, +0.260] dB | +0.500 [+0.470, +0.530] dB | 0.015 | "
        "undecided |",
        "| Beside C9 U-HDN+IKM − U-HDN | cpu | 3 | – | +0.500 [+0.490, +0.510] dB | +1.000 [+0.970, +1.030] dB | "
        "0.015 | holds |"]
    assert legend.startswith("These are differences of PSNR") and legend.endswith("no claim.")
    assert "of these networks by -0.020 to -0.020 dB (CoMo-S x2, whole images). This is exploratory" in authors
    assert decided.partition(": ")[2] == (   # those that wait are named after these
        "1 supported (C4 zero); 1 not supported (C4 median); 1 mixed (C1); 2 not tested at this budget (C5, C9 Table "
        "II). On this study's own questions: 1 supported (P1); 1 not supported (E1 RB).")
    assert "runs:** C1 U-HDN, E1 U-HDB. Finished" in waiting and "21 of 324 runs" in waiting


def test_a_comparison_that_one_claim_judges_and_another_waits_with_is_told_as_judged(results):
    """U-HDB's gain at cpu-long is the primary endpoint, long before all of C1 is finished there."""
    long, page = "cpu-long", notebook.Page("04_table3_attention", config.PROFILES["cpu-long"])
    for claim, outcome in (("C1", "waits"), ("C1, U-HDB", "holds")):
        page.verdict(claim, verdict="supported" if outcome == "holds" else stats.WAITS, **WORDS,
                     comparisons=judged(("U-HDB: IKM − none", 0.09, 0.04, outcome, "20 of 20 runs")))
    assert report.gains()[["claim", "outcome", "profile"]].to_numpy().tolist() == [["C1, U-HDB", "holds", long]]
    assert report.primary().endswith("the gain over all test images *holds*: its interval lies above 0.")
    notebook.Page("04_table3_attention", config.PROFILES["paper"]).verdict(
        "C1, U-HDN", verdict="supported", **WORDS, comparisons=judged(("U-HDN: IKM − none", 0.07, 0.016, "holds", "")))
    assert report.primary().endswith("0.\n\nIn the whole U-HDN, of four blocks, at `paper`, IKM minus vanilla is "
                                     "**+0.016 [+0.006, +0.026] dB** (3 new seeds): *holds*.")
    (results / "paper" / "claims.csv").unlink()
    verdict_at("cpu", "08_fig9_threshold", {"C4, zero": "supported"})
    assert "of 1 complete comparisons, the interval lies above 0 in 1, below 0 in 0," in report.opening()
    page.verdict("C1", verdict="undecided", **WORDS, comparisons=judged(   # corrected for four architectures
        ("U-HDB: IKM − none", 0.09, 0.04, "undecided", "20 of 20 runs"), ("RB: IKM − none", 0.05, 0, "undecided", "")))
    assert report.gains()[["claim", "outcome"]].to_numpy().tolist() == [
        ["C1", "undecided"], ["C1, U-HDB", "holds"]]


def test_the_report_names_the_verdicts_that_pooling_decides():
    d = stats.Difference(0.05, 0.03, 0.07, 3, 100, errors=((0.01, 1000),), own_errors=((0.1, 2),))
    words = comparisons.claim({"a": d}, config.PROFILES["cpu"], paper="p", holds="h.")
    rows = pd.DataFrame([{"claim": "C2", **words}, {"claim": "C7", "because": "h."}])
    assert report.by_own(rows).endswith(
        "these verdicts would be others: C2 IKM is as good as CA and SA, undecided. ")
    assert report.by_own(rows.tail(1)) == ""


FRONT = """# Title
<!-- found -->

old

<!-- end of found -->

text
<!-- map -->

| what | notebook | became |
|---|---|---|
| Fig. 9 | [08](results/cpu/notebooks/08_fig9_threshold.ipynb) | old |
| another | [15](results/cpu/notebooks/15_authors_weights.ipynb) | stays |

<!-- end of map -->
"""


def test_the_front_page_is_written_between_its_markers_alone(results):
    page = notebook.Page("08_fig9_threshold", config.PROFILES["cpu"])
    page.verdict("C4, zero", verdict="supported", **WORDS)
    page.verdict("C4, median", verdict=stats.WAITS, **WORDS | {"ours": "3 of 6 runs; 12 times as slow"},
                 comparisons=judged(("median − 0", np.nan, np.nan, "waits", "3 of 6 runs")))
    made = report.readme(FRONT)
    told = "C4 zero: **supported**; C4 median: waits, 3 of 6 runs"
    assert made.replace(report.opening(), "old").replace(told, "old") == FRONT
    assert report.readme(made) == made and report.readme("no markers") == "no markers"
    front = (config.ROOT / "README.md").read_bytes()
    report.write_report("cpu")   # other records than the project's own
    assert (config.ROOT / "README.md").read_bytes() == front


def test_the_committed_front_page_says_what_the_committed_records_give(monkeypatch):
    monkeypatch.delenv("IKM_RESULTS", raising=False)
    front = (config.ROOT / "README.md").read_text()
    assert "<!-- found -->" in front and "<!-- map -->" in front and report.readme(front) == front


def test_every_entry_of_the_contents_list_has_its_section():
    text = (config.ROOT / "notebooks" / "99_report.ipynb").read_text()
    named = re.findall(r"\[[^\]]+\]\(#([^)]+)\)", text.split("**Contents.**")[1].split("\\n")[0])
    headings = [line.replace(" ", "-") for line in re.findall(r'"## ([^"]+?)(?:\\n)?"', text)]
    assert len(named) > 10 and set(named) == set(headings)


def test_without_evidence_the_report_says_so(results):
    verdict_at("smoke", "01_fig1_synthetic_1d", {"C12": "not testable"})
    path = report.write_report("smoke")
    assert path == results / "REPORT.md" and "No evidence yet" in path.read_text()
    assert not (results / "report.html").exists()


def test_the_web_page_is_the_executed_notebook_99_without_code_and_its_links_lead_on(results):
    import nbformat

    cells = [nbformat.v4.new_markdown_cell("# All claims\n[plan](../../PLAN.md) [04](04_x.ipynb) [web](https://a.b)"),
             nbformat.v4.new_code_cell("secret = 1", outputs=[nbformat.v4.new_output("execute_result", data={
                 "text/markdown": "**0.875** [05](../../small/notebooks/05_y.ipynb)"})])]
    folder = results / "cpu" / "notebooks"
    folder.mkdir(parents=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "99_report.ipynb")
    verdict_at("cpu", "01_fig1_synthetic_1d", {"C12": "not testable"})
    report.write_report("cpu")
    html = (results / "report.html").read_text()
    assert "All claims" in html and "0.875" in html and "secret" not in html
    for link in ("PLAN.md", "cpu/notebooks/04_x.ipynb", "https://a.b", "small/notebooks/05_y.ipynb"):
        assert f'href="{link}"' in html


def trained(runs, seconds=1800.0, sets=("Set5", "BSD100")):
    """Finished runs with made-up scores of all images of the sets."""
    for run in runs:
        rows = [(name, str(i), random.uniform(30, 36), random.uniform(0.9, 0.99), 30.0, 0.9)
                for name in sets for i in range(datasets.SETS[name].count)]
        write_csv(run.folder / "scores.csv", pd.DataFrame(rows, columns=SCORES))
        write_csv(run.folder / "curve.csv", pd.DataFrame(
            {"update": [run.updates], "loss": [0.1], "psnr_y": [30.0], "seconds": [seconds]}))
        write_text(run.folder / "run.json", json.dumps(
            {"id": run.id, "profile": run.profile, "spec": run.spec, "device": "a machine", "torch": "2",
             "data_sha256": "d", "git_commit": "c", "train_seconds": seconds, "params": run.cost[0],
             "multi_adds": run.cost[1], "files": records.digests(run.folder)}))


def table_of(text, *first):
    """The Markdown table whose first columns are called `first`: {first cells of a row: {column: cell}}."""
    lines = text[text.index(f"| {' | '.join(first)} |"):].split("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {" ".join(row[:len(first)]): dict(zip(cells[0], row, strict=True)) for row in cells[2:]}


def lines_of(run, name):
    """PSNR and SSIM of a set, read from a run's per-image scores without pandas."""
    lines = (run.folder / "scores.csv").read_text().splitlines()[1:]
    return np.array([line.split(",")[2:4] for line in lines if line.startswith(name + ",")], dtype=float)


def test_the_numbers_of_the_report_are_those_of_the_per_image_records(results, executed):
    """REPORT.md, parsed back, against scores.csv: a comparison, a verdict and what it rests on."""
    cpu = config.PROFILES["cpu"]
    plan = experiments.planned(cpu, "table3")
    planned = {" ".join(cell): list(runs) for cell, runs in plan.groupby(["block", "attention"]).run}
    trained(plan.run)
    made, page = executed("04", "cpu"), notebook.Page("04_table3_attention", cpu)
    for name, found in made.verdicts.items():
        page.verdict(name, **found)
    text = report.write_report("cpu").read_text()
    verdicts, compared = table_of(text, "claim"), table_of(text[text.index("## Comparisons"):], "comparison")
    difference = np.mean([np.vstack([lines_of(run, s)[:, [0]] for s in ("Set5", "BSD100")]) - np.vstack(
        [lines_of(other, s)[:, [0]] for s in ("Set5", "BSD100")])
        for run, other in zip(planned["RB IKM"], planned["RB none"], strict=True)])
    row = compared["C1 RB: IKM − none"]
    assert row["ours, 95 % interval"].startswith(f"{difference:+.3f} [")
    assert row["paper"] == "+0.05" and len(compared) == 4 + 8   # U-HDB's is in C1, and a claim of its own
    c1 = verdicts["C1 IKM beats vanilla convolution"]
    assert c1["notebook"] == "[04](cpu/notebooks/04_table3_attention.ipynb)"
    assert len(verdicts) == 5   # C1, U-HDB and U-HDN alone, C2; beside C1, half the rate
    assert len(pd.read_csv(results / "cpu" / "runs.csv")) == 64


def test_the_article_runs_on_records_alone_and_counts_all_compute(results, executed):
    """Without any table of another notebook; a run that serves two parts counts once."""
    cpu = config.PROFILES["cpu"]
    shared = experiments.planned(cpu, "fig11").query("order == 'U-HDN'").run
    assert set(shared) <= set(experiments.planned(cpu, "table5").run)
    trained(shared)
    compute = executed("99", "cpu").tables["report_compute"].set_index("what")
    assert dict(compute.trainings) == {
        "first evidence, discarded": 140, "earlier trainings of some of its runs": 4, "search for the recipe": 24,
        "declared runs, profile cpu": 3, "all": 171}
    assert compute.hours.round(2).tolist() == [15.38, 0.49, 1.38, 1.5, 18.75] and compute.diverged["all"] == 3
