"""Notebook 11's own functions: attention, its variance and shapes, the rule, and the reader's own pictures."""
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import code, tiny
from PIL import Image

from ikmlib import config
from ikmlib.models import Architecture
from ikmlib.study import notebook, records, stats

CELLS = code(config.ROOT / "notebooks" / "11_fig5_6_attention_maps.ipynb")
RUN = replace(tiny(seed=1), arch=Architecture(blocks=1, channels=8, growth=4))
random = np.random.default_rng(0)


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """What the notebook defines where it finds no weights; and, in their place, a small network without training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IKM_RESULTS", str(tmp_path_factory.mktemp("results")))
        patch.setattr(notebook.Page, "measured", lambda page, name, measure: measure())   # tables without rows
        exec("\n".join(CELLS), space := {"In": CELLS[:1], "__name__": "__main__"})
    return SimpleNamespace(**space | {"run": RUN, "network": RUN.build().eval(), "networks": {RUN: RUN.build().eval()}})


def execute(book, words, **changes):
    """What is defined after the cell that has these words was executed once more, after changes."""
    space = vars(book) | changes
    exec(next(cell for cell in CELLS if words in cell), space)
    return SimpleNamespace(**space)


def test_attention_of_a_half_bright_image_and_of_a_moved_one(book, capsys):
    bright = torch.tensor([0.0] * 3 + [-1] * 6)[None, :, None].repeat(1, 1, 12)   # shares e / (3e + 6), 1 / (3e + 6)
    np.testing.assert_allclose(book.attention(bright)[0], [[1.67445] * 3, [1.40995] * 3, [1.40995] * 3], atol=1e-5)
    np.testing.assert_allclose(book.attention(bright.roll(3, 1)), book.attention(bright).roll(1, 1))
    execute(book, "assert_allclose")   # it is what the layers take
    assert capsys.readouterr().out.startswith("6 sets")


def test_variance_and_shapes_and_correlations_have_their_known_answers(book):
    static, image, part = (random.normal(0, *a) for a in ((3, (1, 4, 300)), (2, (400, 1, 300)), (1, (400, 4, 300))))
    known = (static.var(), 4 + 1 / 4, 3 / 4)   # a quarter of the parts' variance is in the means of four
    assert book.variance_parts(static + image + part) == pytest.approx(known, rel=0.02)
    ratings = np.array([(9, 2, 5, 8), (6, 1, 3, 2), (8, 4, 6, 8), (7, 1, 2, 6), (10, 5, 6, 9), (6, 2, 4, 7)])
    assert book.intraclass_correlation(ratings[..., None]) == pytest.approx(0.7148, abs=5e-5)   # Shrout, Fleiss 1979
    laplace, horizontal, vertical = (np.array(t) / np.linalg.norm(t) for t in book.SHAPES.values())
    own = random.normal(size=(6, 1, 1, 1)) * (3 * laplace + horizontal - 2 * vertical)
    np.testing.assert_allclose(book.own_shapes(5 * vertical + own), [np.array([9, 1, 4, 0]) / 14] * 6, atol=1e-12)
    x, y = np.array([1.0, 2, 3, 4, 50]), np.array([2.0, 1, 4, 3, 5])   # squared rank differences add up to 4
    assert book.rank_correlation(x, y) == pytest.approx(1 - 6 * 4 / (5 * 24))
    x, noise = random.normal(size=(2, 400))
    d = book.over_images(lambda row, kept: book.rank_correlation(x[kept], row), "", 0.8 * x[None] + 0.6 * noise)
    # as wide as by Fisher's z
    assert np.arctanh(d.high) - np.arctanh(d.low) == pytest.approx(2 * 1.96 / np.sqrt(397), rel=0.25)


def test_means_over_images_have_the_interval_of_stats_paired(book):
    trained, untrained = random.normal(size=(2, 3, 20))
    found = book.over_images(lambda row, kept: row.mean(), "u", trained, untrained)
    assert found.interval == pytest.approx(stats.paired(trained - untrained).interval)


@pytest.mark.parametrize(("laplace", "follow", "seeds", "verdict"), [
    (0.4, 1, 3, "supported"), (0.05, 1, 3, "mixed"), (0.4, 0, 3, "undecided"), (0.4, 1, 2, stats.WAITS)])
def test_c10_asks_what_training_made_of_both_shapes_in_three_seeds(book, laplace, follow, seeds, verdict):
    luma, other, before = random.random((3, 60, 3))
    shares = {"trained": np.array([laplace, 0.4, 0]) + 0.03 * (luma if follow else other),
              "untrained": np.array([0.1, 0.1, 0]) + 0.03 * before}
    rows = [(name, seed, i, {"trained": 5, "untrained": 2}[name] + luma[i, 0], *shares[name][i], *luma[i])
            for name in shares for seed in range(seeds) for i in range(60)]
    table = execute(book, "asked =", images=pd.DataFrame(rows, columns=book.KEYS["images"]))
    words = book.c10(table.answers, pd.DataFrame([("trained", "all", 0.25)], columns=["network", "unit", "icc"]))
    assert words["verdict"] == verdict and len(words["comparisons"]) == 5 and len(table.asked) == 3 * 7
    assert not words["comparisons"].comparison.str.contains("vertical").any()


def test_tables_serve_again_unless_they_are_of_other_runs(book, results, monkeypatch):
    named = {name: random.integers(0, 256, (40, 36 + i, 3), dtype=np.uint8) for i, name in enumerate("abc")}
    monkeypatch.setattr(records, "scored_images", lambda profile: {"set": named})
    page = notebook.Page("11", config.PROFILES["smoke"], anew=False)
    first = execute(book, "def measured", page=page)
    assert list(first.variance.unit) == [*"123456"] * 2 + ["all"] * 2 and first.shapes.Laplace.between(0, 1).all()
    pd.testing.assert_frame_equal(execute(book, "def measured", page=page, tables=None).images, first.images,
                                  check_dtype=False)
    with pytest.raises(TypeError):   # it measures
        execute(book, "def measured", page=page, tables=None, networks={replace(RUN, seed=2): book.network})


def test_own_pictures_are_shown_and_a_bad_one_is_refused_by_name(book, results, tmp_path):
    assert execute(book, "open_page", pictures=["mine.png"], profile="smoke").page.recorded   # nothing is written
    Image.new("L", (60, 1100)).save(tmp_path / "mine.png")
    shown = execute(book, "def figure_pictures", pictures=[tmp_path / "mine.png"])
    assert shown.photographs[str(tmp_path / "mine.png")].shape == (550, 30, 3) and not list(results.iterdir())
    with pytest.raises(ValueError, match="test_maps.py is no picture"):
        execute(book, "def figure_pictures", pictures=[tmp_path / "mine.png", __file__])
