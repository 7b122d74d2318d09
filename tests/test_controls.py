"""Controls: attention replaced where it should be, gradients against autograd, verdicts that follow the scores."""
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, code, tiny

from ikmlib import config
from ikmlib.layers import IKMConv2d, attending
from ikmlib.models import SRNetwork
from ikmlib.study import experiments, records, scoring, weights
from ikmlib.trainers import evaluate

SMOKE = config.PROFILES["smoke"]


def network(seed=0, **changes):
    torch.manual_seed(seed)
    return SRNetwork(replace(TINY, **changes), 2)


def batch(images=3):
    return torch.rand(images, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def test_constant_context_is_a_vanilla_network_with_weights_times_one_and_a_half():
    constant, vanilla = network(context="constant"), network(attention="none", gain=1.5)
    for conv in (m for m in constant.modules() if isinstance(m, IKMConv2d)):
        assert conv.attention(batch()[:, :1]) == 1.5
    torch.testing.assert_close(constant(batch()), vanilla(batch()))


def test_shuffled_context_is_the_next_images():
    own, shuffled = (network(context=context).blocks[0].units[0].convs[0] for context in ("own", "shuffled"))
    x = torch.randn(3, 8, 9, 9)
    torch.testing.assert_close(shuffled.attention(x), own.attention(x)[[1, 2, 0]], rtol=0, atol=0)
    torch.testing.assert_close(shuffled.attention(x[:1]), own.attention(x[:1]), rtol=0, atol=0)


def test_attention_taken_from_an_image_gives_that_images_result():
    """Attention replaced by the image's own changes nothing, by another's the result; afterwards all is back."""
    model = network(tau=-0.1)   # attention alive on the signed channels
    x = batch(1)
    own = scoring.attention_of(model, model, x)
    other = scoring.attention_of(model, model, batch(2)[1:])
    expected = model(x)
    with attending(model, scoring.replaced(own)):
        torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
    with attending(model, scoring.replaced(other)):
        assert not torch.equal(model(x), expected)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)


def test_other_attention_at_test_time_is_measured_once_and_listed(results, monkeypatch):
    run = tiny()
    monkeypatch.setattr(scoring, "tested_otherwise", lambda run: True)
    scoring.score(run)
    assert scoring.other_attention_scores(run) is None   # not trained yet
    records.train(run, show=False)
    scoring.score(run)
    table = scoring.other_attention_scores(run)
    own = run.scores().set_index(["set", "image"])
    assert list(table.columns) == ["set", "image", "frozen", "swapped"] and len(table) == len(own)
    model = weights.trained_network(run)
    images = records.scored_images(SMOKE)["embedded-test"]
    with attending(model, scoring.replaced(scoring.training_mean(model, run))):
        frozen = evaluate(model, images, 2).set_index("image").psnr_y
    for row in table.itertuples():
        assert row.frozen == pytest.approx(frozen[row.image], abs=1e-5)
        assert abs(row.swapped - own.psnr_y[row.set, row.image]) < 1
    records.check(run.folder / "run.json")
    monkeypatch.setattr(scoring, "trained_network", None)   # any new measurement fails
    scoring.score(run)


def test_a_set_that_was_installed_later_is_scored_then(results, monkeypatch):
    """The scores of the sets together are those of a run that was scored on both at once."""
    both = replace(SMOKE, test_sets=("embedded-test", "embedded-val"))
    records.train(tiny(), show=False)
    first = tiny().scores()
    monkeypatch.setitem(config.PROFILES, "smoke", both)
    scoring.score(tiny())
    later = tiny().scores()
    records.check(tiny().folder / "run.json")
    record = records.read_record(tiny().folder)
    assert set(record["pixels_sha256"]) == {"embedded-train", "embedded-test", "embedded-val"}
    pd.testing.assert_frame_equal(later.head(len(first)), first)
    monkeypatch.setenv("IKM_RESULTS", str(results / "at once"))
    records.train(tiny(), show=False)
    pd.testing.assert_frame_equal(tiny().scores(), later)


def test_scoring_that_was_cut_off_is_done_again(results, monkeypatch):
    monkeypatch.setattr(scoring, "tested_otherwise", lambda run: True)
    records.train(tiny(), show=False)
    monkeypatch.setattr(records, "write_record", lambda *words: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        scoring.score(tiny())
    monkeypatch.undo()
    monkeypatch.setenv("IKM_RESULTS", str(results))
    with pytest.raises(ValueError, match="not the files that it lists: controls_embedded-test.csv"):
        records.check(tiny().folder / "run.json")
    monkeypatch.setattr(scoring, "tested_otherwise", lambda run: True)
    scoring.score(tiny())
    records.check(tiny().folder / "run.json")


@pytest.fixture
def rules():
    """The functions of notebook 12 that compare gradient rules."""
    cells = code(config.ROOT / "notebooks" / "12_controls.ipynb")
    space = {"experiments": experiments, "records": records, "pd": pd}
    for cell in (cell for cell in cells if "def kernel_gradients" in cell or "def gradient_agreement" in cell):
        exec(cell, space)
    return space


def test_gradients_of_the_rules_against_autograd_of_the_plain_formula(rules):
    model, (lr, hr) = network(), (batch(), torch.rand(3, 3, 24, 24))
    found = rules["kernel_gradients"](model, lr, hr)
    exact = found["autograd"]
    cosine = torch.cosine_similarity(found["iso"], exact, dim=0)
    assert cosine > 0.999 and found["iso"].norm() / exact.norm() == pytest.approx(1 / 1.5 / 3, rel=0.05)
    assert {m.gradient for m in model.modules() if isinstance(m, IKMConv2d)} == {"iso"}
    assert all(p.grad is None for p in model.parameters())


def test_gradient_agreement_of_a_short_training(rules):
    table = rules["gradient_agreement"](SMOKE, 0)
    assert set(table["update"]) == {0, 10} and set(table.rule) == {"iso", "go"} and (table.cosine > 0.99).all()
    assert np.cos(np.radians(table.angle_degrees)).to_numpy() == pytest.approx(table.cosine.to_numpy())
