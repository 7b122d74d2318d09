"""The recipe's search: which runs it wants as records come, what it chooses, and that validation alone decides."""
import json

import pandas as pd
import pytest

from ikmlib.config import PROFILES
from ikmlib.study import recipe, records, training

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


def finish(runs, *psnrs):
    for run, psnr in zip(runs, psnrs, strict=True):
        run.folder.mkdir(parents=True)
        pd.DataFrame({"update": [run.updates], "psnr_y": [psnr]}).to_csv(run.folder / "curve.csv")
        (run.folder / ("run.json" if psnr else "diverged.json")).write_text(json.dumps({"id": run.id}))


def new(seen):
    """What the search wants trained beyond what it wanted before."""
    fresh = [run for run in training.queue(PROFILES["recipe"]) if run not in seen]
    seen += fresh
    return fresh


def test_the_search_goes_rates_a_rate_that_rb_bears_shapes_second_seed(results):
    seen = []
    rates = new(seen)
    assert len(rates) == 6 == len({run.id for run in rates})
    finish(rates, 30, 30, 30.2, 30.4, 30.4, 30.5)   # the highest rate wins
    check = new(seen)
    assert [(run.rate, run.arch.block) for run in check] == [(2e-3, "rb")] * 2
    finish(check, 30, None)   # and RB with IKM diverges there
    check = new(seen)
    assert [(run.rate, run.arch.block) for run in check] == [(1e-3, "rb")] * 2
    finish(check, 30, 30)
    shapes = new(seen)
    assert [(run.rate, run.updates, run.batch) for run in shapes[::2]] == [(1e-3, 2000, 8), (1e-3, 8000, 2)]
    finish(shapes, 30, 30, 30.5, 30.7)
    check = new(seen)
    assert [(run.updates, run.arch.block) for run in check] == [(8000, "rb")] * 2
    finish(check, 30, 30)
    last = new(seen)
    assert [(run.updates, run.batch, run.seed) for run in last] == [(8000, 2, 101)] * 2
    assert recipe.steps()[-1] == ((1e-3, 8000, 2), 101, "uhdb")


def test_no_test_image_is_seen():
    assert records.scored_images(PROFILES["recipe"], ("T91", "BSDS500")) == {}
    assert not set(PROFILES["recipe"].seeds) & {seed for p in PROFILES.values() if p.evidence for seed in p.seeds}
