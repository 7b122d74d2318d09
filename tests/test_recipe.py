"""The recipe's search: which runs it wants as records come, what it chooses, and that validation alone decides."""
import json

import pandas as pd
import pytest

from ikmlib import recipe, study
from ikmlib.config import PROFILES

A, B, C = ((rate, 4000, 4) for rate in recipe.RATES)


@pytest.mark.parametrize(("psnr", "chosen"), [
    ((30.00, 30.05, 30.10), C),   # the best
    ((30.00, 30.09, 30.10), B),   # within the margin of the best: the lower rate
    ((30.09, 30.00, 30.10), A)])
def test_the_best_or_within_the_margin_the_lower_rate(psnr, chosen):
    assert recipe.choose(dict(zip((A, B, C), psnr, strict=True))) == chosen


def test_within_the_margin_the_cheaper_shape():
    many, few = (1e-3, 8000, 2), (1e-3, 2000, 8)
    assert recipe.choose({B: 30.00, many: 30.01, few: 29.995}) == few
    assert recipe.choose({B: 30.00, many: 30.03, few: 29.99}) == many


def finish(run, psnr):
    run.folder.mkdir(parents=True)
    pd.DataFrame({"update": [run.updates], "psnr_y": [psnr]}).to_csv(run.folder / "curve.csv")
    (run.folder / "run.json").write_text(json.dumps({"id": run.id}))


def test_the_search_goes_rates_shapes_second_seed(results):
    assert len(recipe.wanted()) == 6 and len({run.id for run in recipe.wanted()}) == 6
    for run, psnr in zip(recipe.wanted(), (30, 30, 30.2, 30.4, 30.1, 30.2), strict=True):
        finish(run, psnr)   # means 30, 30.3, 30.15
    shapes = recipe.wanted()[6:]
    assert [(run.rate, run.updates, run.batch) for run in shapes[::2]] == [(1e-3, 2000, 8), (1e-3, 8000, 2)]
    assert not recipe.table().chosen.any()
    for run, psnr in zip(shapes, (30, 30, 30.5, 30.7), strict=True):
        finish(run, psnr)
    last = recipe.wanted()[10:]
    assert [(run.updates, run.batch, run.seed) for run in last] == [(8000, 2, 101)] * 2
    table = recipe.table()
    assert list(table.chosen) == [False] * 4 + [True] * 2 and table.psnr_mean.iloc[4] == pytest.approx(30.6)


def test_no_test_image_is_seen():
    assert study.test_images(PROFILES["recipe"], ("T91", "BSDS500")) == {}
    assert not set(PROFILES["recipe"].seeds) & {seed for p in PROFILES.values() if p.evidence for seed in p.seeds}
