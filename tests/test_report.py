"""Pages, tables as people read them, and a report made only from records."""
import json

import numpy as np
import pandas as pd
import pytest

from ikmlib import config, datasets
from ikmlib.files import write_csv, write_text
from ikmlib.study import experiments, notebook, records, report
from ikmlib.study.records import SCORES

random = np.random.default_rng(0)


def test_readable_twins():
    frame = pd.DataFrame({"block": ["RB"], "psnr_paper": [37.474], "psnr_ours": [35.2], "psnr_sd": [0.034],
                          "ssim_ours": [np.nan], "seeds": [3]})
    shown = notebook.readable(frame)
    assert dict(shown.iloc[0]) == {"block": "RB", "psnr paper": "37.47", "psnr ours": "35.20 ± 0.03",
                                   "ssim ours": "–", "seeds": "3"}
    assert notebook.markdown_table(frame).splitlines()[2] == "| RB | 37.47 | 35.20 ± 0.03 | – | 3 |"


def test_unknown_papermill_parameter_is_refused():
    cells = ["", 'profile = "auto"\ntrain = True', '# Parameters\nprofile = "smoke"\n']
    notebook.check_parameters(cells)
    notebook.check_parameters(cells[:2])
    with pytest.raises(ValueError, match="unknown parameter epochs; this notebook takes profile, train"):
        notebook.check_parameters([*cells, "# Parameters\nepochs = 3\n"])


def test_page_records_what_the_report_shows(results):
    import matplotlib.pyplot as plt

    page = notebook.open_page("04_table3_attention", profile="smoke")
    frame = pd.DataFrame({"block": ["RB"], "psnr_ours": [31.25]})
    page.table(frame, "numbers", "Some numbers")
    pd.testing.assert_frame_equal(pd.read_csv(results / "smoke" / "numbers.csv"), frame)
    page.figure(plt.figure(), "picture", "A picture")
    assert (results / "smoke" / "picture.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="'proven'"):
        page.verdict("C1", paper="p", ours="o", verdict="proven", because="b")
    page.verdict("C1", paper="p", ours="o", verdict="supported", because="b")
    page.verdict("C12", paper="p", ours="o", verdict="supported", because="b", any_profile=True)
    manifest = json.loads((results / "smoke" / "pages" / "04_table3_attention.json").read_text())
    assert [c["verdict"] for c in manifest["claims"]] == ["not tested at this budget", "supported"]
    text = report.write_report("smoke").read_text()
    assert "31.25" in text and "picture.png" in text and "Not evidence" in text
    html = (results / "smoke" / "report.html").read_text()
    assert 'src="picture.png"' in html and "31.25" in html


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
    written.verdict("C11", paper="p", ours="o", verdict="supported", because="b")
    before = {path: path.stat().st_mtime_ns for path in results.rglob("*") if path.is_file()}
    page = notebook.open_page("13_cost", profile="recorded")
    assert page.profile.name == "cpu" and page.measured("cost", None).ms.item() == 1.5   # no measurement is made
    page.table(pd.DataFrame({"ms": [9.0]}), "cost")
    page.figure(plt.figure(), "picture")
    page.verdict("C11", paper="p", ours="o", verdict="mixed", because="b")
    assert {path: path.stat().st_mtime_ns for path in results.rglob("*") if path.is_file()} == before
    again = notebook.open_page("13_cost", profile="cpu", train=False)
    assert again.measured("cost", None).ms.item() == 1.5 and not again.recorded


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
    """REPORT.md, parsed back, against scores.csv: cells of the table, a contrast, a verdict and what it rests on."""
    cpu = config.PROFILES["cpu"]
    plan = experiments.planned(cpu, "table3")
    planned = {" ".join(cell): list(runs) for cell, runs in plan.groupby(["block", "attention"]).run}
    trained(plan.run)
    made, page = executed("04", "cpu"), notebook.Page("04_table3_attention", cpu)
    for name in ("table3", "table3_contrasts"):
        page.table(made.tables[name], name)
    for name, found in made.verdicts.items():
        page.verdict(name, **found)
    text = report.write_report("cpu").read_text()
    shown, gains, verdicts = (table_of(text, *first) for first in (
        ("block", "attention"), ("contrast",), ("claim",)))
    for label, runs in planned.items():
        means = np.array([lines_of(run, "Set5").mean(0) for run in runs[:3]])   # the seeds that all variants have
        for column, digits, values in (("Set5 psnr ours", 2, means[:, 0]), ("Set5 ssim ours", 4, means[:, 1])):
            cells = [float(cell) for cell in shown[label][column].split(" ± ")]
            rounding = 0.5 * 10.0 ** -digits + 1e-6   # of the cell, and of the CSV, six decimals, that it is read from
            assert cells == pytest.approx([values.mean(), values.std(ddof=1)], abs=rounding, rel=0)
    difference = np.mean([np.vstack([lines_of(run, s)[:, [0]] for s in ("Set5", "BSD100")]) - np.vstack(
        [lines_of(other, s)[:, [0]] for s in ("Set5", "BSD100")])
        for run, other in zip(planned["RB IKM"], planned["RB none"], strict=True)])
    assert gains["RB: IKM − none"]["gain db ours"] == f"{difference:.3f}"
    c1 = verdicts["C1 IKM beats vanilla convolution"]
    assert f"RB: IKM − none {difference:+.3f} [" in c1["ours"] and c1["rests on"] == "5 seeds"
    assert c1["notebook"].startswith("[04](") and len(verdicts) == 13
    assert f"| a machine | 2 | c | 64 | {64 * 0.5:.3f} | 256000 |" in text


def test_hours_of_a_shared_run_are_counted_once(results):
    small = config.PROFILES["small"]
    shared = experiments.planned(small, "fig11").query("order == 'U-HDN'").run
    assert set(shared) <= set(experiments.planned(small, "table5").run)
    trained(shared)
    table = report.compute_used(small)
    assert list(table.runs) == [3, 3] and table.hours.iloc[-1] == pytest.approx(1.5) and table.device[1] == "all"
    assert table.updates[1] == 30_000 and report.compute_used(config.PROFILES["cpu"]).empty


def test_text_tagged_for_the_report_appears_once_and_below_its_page(results):
    (results / "cpu" / "pages").mkdir(parents=True)
    manifest = {"notebook": "99_report", "profile": "cpu", "tables": [], "figures": [], "claims": []}
    (results / "cpu" / "pages" / "99_report.json").write_text(json.dumps(manifest))
    lines = report.write_report("cpu").read_text().splitlines()
    headings = [line for line in lines if line.startswith("#")]
    assert headings == [
        "# Reproduction report, profile `cpu`", "## Verdicts", "## 99 · Report: every claim, every cost, errors found",
        "### Deviations from the paper", "### What was easy", "### What was hard", "### What this does not show",
        "## Compute"]


def test_links_lead_to_executed_notebooks(results):
    page = notebook.open_page("01_fig1_synthetic_1d", profile="cpu")
    page.verdict("C12", paper="p", ours="o", verdict="mixed", because="b")
    executed = results / "cpu" / "notebooks"
    executed.mkdir()
    (executed / "01_fig1_synthetic_1d.ipynb").write_text("{}")
    text = report.write_report("cpu").read_text()
    assert "[01](notebooks/01_fig1_synthetic_1d.ipynb)" in text
    assert "[01](cpu/notebooks/01_fig1_synthetic_1d.ipynb)" in report.write_overall().read_text()
