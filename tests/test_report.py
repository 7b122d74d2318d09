"""Statistics against plain loops, the verdict rule, pages, and a report made only from records."""
import json

import numpy as np
import pandas as pd
import pytest

from ikmlib import report
from ikmlib.report import Difference, contrast, judge, paired_bootstrap

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


def scored(values):
    rows = [(variant, seed, "Set5", image, value) for (variant, seed, image), value in values.items()]
    return pd.DataFrame(rows, columns=["variant", "seed", "set", "image", "psnr_y"])


def test_a_contrast_compares_only_what_all_variants_have():
    table = scored({
        ("ours", 0, "a"): 31.0, ("ours", 0, "b"): 33.0, ("ours", 1, "a"): 31.5, ("ours", 1, "b"): 33.5,
        ("ours", 2, "a"): 99.0, ("base", 0, "a"): 30.0, ("base", 0, "b"): 31.0, ("base", 1, "a"): 30.0,
        ("base", 1, "b"): 31.0, ("base", 1, "c"): 1.0})
    found = contrast(table, {"ours": 1, "base": -1})
    assert (found.mean, found.seeds, found.images) == (pytest.approx(1.75), 2, 2)
    assert found.low <= 1.75 <= found.high
    assert contrast(table, {"ours": 1, "absent": -1}) is None
    assert contrast(table, {"ours": 0.5, "base": 1}).mean == pytest.approx(32.25 / 2 + 30.5)


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
