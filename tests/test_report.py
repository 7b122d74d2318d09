"""Statistics against plain loops, the verdict rule, pages, and a report made only from records."""
import json

import numpy as np
import pandas as pd
import pytest

from ikmlib import artefacts, config, report, study
from ikmlib.config import PROFILES
from ikmlib.report import Difference, judge, paired, paired_bootstrap

random = np.random.default_rng(0)


def test_bootstrap_is_resampling_written_out():
    d = random.normal(0.1, 1, (3, 20))
    draws = np.random.default_rng(7)
    rows, columns = draws.integers(3, size=(500, 3)), draws.integers(20, size=(500, 20))
    means = [d[np.ix_(r, c)].mean() for r, c in zip(rows, columns, strict=True)]
    expected = d.mean(), *np.quantile(means, (0.025, 0.975))
    assert paired_bootstrap(d, seed=7, resamples=500) == pytest.approx(expected)


def test_bootstrap_covers_the_truth():
    hits = [low <= 0.3 <= high for _, low, high in (
        paired_bootstrap(random.normal(0.3, 1, 60), seed=i, resamples=400) for i in range(200))]
    assert 0.88 <= np.mean(hits) <= 0.99


@pytest.mark.parametrize("bad", [[], [1.0, float("nan")]])
def test_bootstrap_refuses(bad):
    with pytest.raises(ValueError, match="finite and not empty"):
        paired_bootstrap(np.array(bad))


def scores(values):
    rows = [(seed, "Set5", image, value) for (seed, image), value in values.items()]
    return pd.DataFrame(rows, columns=["seed", "set", "image", "psnr_y"])


def test_paired_compares_only_what_both_have():
    ours = scores({(0, "a"): 31.0, (0, "b"): 33.0, (1, "a"): 31.5, (1, "b"): 33.5, (2, "a"): 99.0})
    base = scores({(0, "a"): 30.0, (0, "b"): 31.0, (1, "a"): 30.0, (1, "b"): 31.0, (1, "c"): 1.0})
    found = paired(ours, base)
    assert (found.mean, found.seeds, found.images) == (pytest.approx(1.75), 2, 2)
    assert found.low <= 1.75 <= found.high
    assert paired(ours, base[base.seed == 9]) is None


def test_verdict_rule():
    def d(low, seeds=3):
        return Difference(low + 0.05, low, low + 0.1, seeds, 100)

    assert judge([d(0.01), d(0.02)]) == "supported"
    assert judge([d(0.01), d(-0.02)]) == "mixed"
    assert judge([d(-0.01), d(-0.02)]) == "not supported"
    assert judge([d(-0.01)], margin=0.02) == "supported"
    for untested in ([], [d(0.01), None], [d(0.01), d(0.01, seeds=2)]):
        assert judge(untested) == "not tested at this budget"
    assert judge([d(0.01)], evidence=False) == "not tested at this budget"


def test_readable_twins():
    frame = pd.DataFrame({"block": ["RB"], "psnr_paper": [37.474], "psnr_ours": [35.2], "psnr_sd": [0.034],
                          "ssim_ours": [np.nan], "seeds": [3]})
    shown = report.readable(frame)
    assert dict(shown.iloc[0]) == {"block": "RB", "psnr paper": "37.47", "psnr ours": "35.20 ± 0.03",
                                   "ssim ours": "–", "seeds": "3"}
    assert report.markdown_table(frame).splitlines()[2] == "| RB | 37.47 | 35.20 ± 0.03 | – | 3 |"


def test_unknown_papermill_parameter_is_refused():
    cells = ["", 'profile = "auto"\ntrain = True', '# Parameters\nprofile = "smoke"\n']
    report.check_parameters(cells)
    report.check_parameters(cells[:2])
    with pytest.raises(ValueError, match="unknown parameter epochs; this notebook takes profile, train"):
        report.check_parameters([*cells, "# Parameters\nepochs = 3\n"])


def test_page_records_what_the_report_shows(results):
    import matplotlib.pyplot as plt

    page = report.open_page("04_table3_attention", profile="smoke")
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
    assert "data:image/png;base64" in html and "31.25" in html


def fake_runs(results, profile):
    """Finished runs with made-up scores for two seeds of the grid, so that tables can be checked against arithmetic."""
    runs = [run for run in study.table3(profile) if run.seed < 2]
    for run in runs:
        rows = [("Set5", str(i), *random.uniform(30, 36, 1), 0.9, *random.uniform(30, 36, 1), 0.9) for i in range(5)]
        columns = ["set", "image", "psnr_y", "ssim_y", "psnr_y_rounded", "ssim_y_rounded"]
        study.write_csv(run.folder / "scores.csv", pd.DataFrame(rows, columns=columns))
        study.write_text(run.folder / "run.json", "{}")
    return runs


def test_table3_equals_a_recomputation_from_the_per_image_records(results):
    runs = fake_runs(results, PROFILES["cpu"])
    table = artefacts.table3(runs).set_index(["block", "attention"])
    gains = artefacts.table3_gains(runs).set_index(["block", "attention"])

    def image_scores(block, attention):
        folders = [run.folder for run in runs if (run.arch.block, run.arch.attention) == (block, attention)]
        return np.array([[float(line.split(",")[2]) for line in (folder / "scores.csv").read_text().splitlines()[1:]]
                         for folder in folders])

    for block, name in (("rb", "RB"), ("uhdb", "U-HDB")):
        for attention in ("none", "ikm"):
            means = image_scores(block, attention).mean(1)
            row = table.loc[name, artefacts.NAMES[attention]]
            assert row.psnr_ours == pytest.approx(means.mean()) and row.psnr_sd == pytest.approx(means.std(ddof=1))
        gain = (image_scores(block, "ikm") - image_scores(block, "none")).mean()
        assert gains.loc[name, "IKM"].gain_db_ours == pytest.approx(gain)
    assert table.loc["U-HDB", "IKM"].psnr_paper == 37.57 and round(table.loc["RB", "SA"].params_k_ours, 1) == 371.7
    assert gains.loc["DB", "IKM"].gain_db_paper == pytest.approx(0.08)


def test_a_seed_counts_when_every_cell_has_it(results):
    runs = fake_runs(results, PROFILES["cpu"])
    assert set(artefacts.table3(runs).seeds) == {2}
    assert set(artefacts.table3(runs[:-1]).seeds) == {1}


def test_tables_and_figures_with_nothing_trained(results):
    assert artefacts.table3([]).psnr_ours.isna().all() and artefacts.table3_gains([]).gain_db_ours.isna().all()
    verdicts = artefacts.table3_verdicts([], PROFILES["cpu"])
    assert {v["verdict"] for v in verdicts.values()} == {"not tested at this budget"}
    artefacts.figure_table3_gains(artefacts.table3_gains([]))
    artefacts.figure_table3_curves([])


def test_paper_numbers_are_the_ones_of_the_text():
    table = artefacts.paper("table3")
    assert len(table) == 16 and set(table.attention) == {"none", "CA", "SA", "IKM"}
    assert (config.PAPER / "table1.csv").exists()
