"""Controls: attention replaced where it should be, gradients against autograd, verdicts that follow the scores."""
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, tiny

from ikmlib import config
from ikmlib.fast import known_attention
from ikmlib.files import write_csv
from ikmlib.layers import IKMConv2d, attending
from ikmlib.models import SRNetwork
from ikmlib.study import controls, records, test_time
from ikmlib.trainers import evaluate

from test_artefacts import fake   # isort: skip

CPU, SMOKE = config.PROFILES["cpu"], config.PROFILES["smoke"]


def network(seed=0, **changes):
    torch.manual_seed(seed)
    return SRNetwork(replace(TINY, **changes), 2)


def batch(images=3):
    return torch.rand(images, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def test_constant_context_is_a_vanilla_network_with_weights_times_one_and_a_half():
    constant, vanilla = network(context="constant"), network(attention="none", gain=1.5)
    for conv in (m for m in constant.modules() if isinstance(m, IKMConv2d)):
        assert known_attention(conv, after_relu=False) == 1.5 and (conv.attention(batch()[:, :1]) == 1.5).all()
    torch.testing.assert_close(constant(batch()), vanilla(batch()))


def test_shuffled_context_is_the_next_images():
    own, shuffled = (network(context=context).blocks[0].units[0].convs[0] for context in ("own", "shuffled"))
    x = torch.randn(3, 8, 9, 9)
    torch.testing.assert_close(shuffled.attend(x), own.attend(x)[[1, 2, 0]], rtol=0, atol=0)
    torch.testing.assert_close(shuffled.attend(x[:1]), own.attend(x[:1]), rtol=0, atol=0)


def test_attention_taken_from_an_image_gives_that_images_result():
    """Attention replaced by the image's own changes nothing, by another's the result; afterwards all is back."""
    model = network(tau=-0.1)   # attention alive on the signed channels
    x = batch(1)
    own = test_time.attention_of(model, model, x)
    other = test_time.attention_of(model, model, batch(2)[1:])
    expected = model(x)
    with attending(model, test_time.replaced(own)):
        torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
    with attending(model, test_time.replaced(other)):
        assert not torch.equal(model(x), expected)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)


def test_other_attention_at_test_time_is_measured_once_and_kept(results, monkeypatch):
    run = tiny()
    assert test_time.test_time_scores(run) is None
    records.train(run, show=False)
    table = test_time.test_time_scores(run)
    own = run.scores().set_index(["set", "image"])
    assert list(table.columns) == ["set", "image", "frozen", "swapped"] and len(table) == len(own)
    model = test_time.trained_network(run)
    images = records.test_images(SMOKE, run.data)["embedded-test"]
    with attending(model, test_time.replaced(test_time.training_mean(model, run))):
        frozen = evaluate(model, images, 2).set_index("image").psnr_y
    for row in table.itertuples():
        assert row.frozen == pytest.approx(frozen[row.image], abs=1e-5)
        assert abs(row.swapped - own.psnr_y[row.set, row.image]) < 1
    monkeypatch.setattr(test_time, "trained_network", None)   # any new measurement fails
    pd.testing.assert_frame_equal(test_time.test_time_scores(run), table)


def test_gradients_of_the_rules_against_autograd_of_the_plain_formula():
    model, (lr, hr) = network(), (batch(), torch.rand(3, 3, 24, 24))
    found = controls._gradients(model, lr, hr)
    exact = found["autograd"]
    cosine = torch.cosine_similarity(found["iso"], exact, dim=0)
    assert cosine > 0.999 and found["iso"].norm() / exact.norm() == pytest.approx(1 / 1.5 / 3, rel=0.05)
    assert {m.gradient for m in model.modules() if isinstance(m, IKMConv2d)} == {"iso"}
    assert all(p.grad is None for p in model.parameters())


def test_gradient_agreement_of_a_short_training():
    table = controls.gradient_agreement(SMOKE)
    assert set(table["update"]) == {0, 10} and set(table.rule) == {"iso", "go"} and (table.cosine > 0.99).all()
    assert np.cos(np.radians(table.angle_degrees)).to_numpy() == pytest.approx(table.cosine.to_numpy())


@pytest.mark.parametrize(("bonus", "own", "scale"), [
    ({"IKM": 0.1}, "supported", "not supported"),
    ({"IKM": 0.1, "constant 1.5": 0.15, "none, weights x 1.5": 0.1, "shuffled": 0.15}, "not supported", "supported")])
def test_verdicts_follow_the_scores(results, bonus, own, scale):
    blocks = controls.BLOCKS
    wanted = fake(CPU, "controls", bonus={f"{b} {k}": value for b in blocks for k, value in bonus.items()})
    for block in blocks:   # what test time would have measured: as much worse than IKM as constant attention is
        for run in wanted[f"{block} IKM"]:
            table = run.scores()[["set", "image", "psnr_y"]]
            worse = bonus["IKM"] - bonus.get("constant 1.5", 0) + 0.001
            table = table.assign(frozen=table.psnr_y - worse, swapped=table.psnr_y - worse)
            if own != "supported":
                table[["frozen", "swapped"]] += 0.01
            write_csv(run.folder / "controls.csv", table.drop(columns="psnr_y"))
    table = controls.answers(CPU, controls.questions())
    asked = controls.answers(CPU, controls.own_attention_questions())
    assert table.gain_db_ours.notna().all() and asked.gain_db_ours.notna().all()
    at_test = asked[asked.contrast.str.contains("at test")]
    assert (at_test.seeds_error_db < 1e-9).all()   # the same networks: what trainings differ by is not in it
    found = controls.verdicts(table, asked, CPU)
    assert {name: entry["verdict"] for name, entry in found.items()} == {
        f"{name}, {block}": verdict for block in blocks
        for name, verdict in (("E1, own attention", own), ("E2, scale", scale))}
    (wanted["RB shuffled"][2].folder / "run.json").unlink()
    incomplete = controls.verdicts(table, controls.answers(CPU, controls.own_attention_questions()), CPU)
    assert incomplete["E1, own attention, RB"]["verdict"] == "not tested at this budget"
    assert incomplete["E1, own attention, U-HDB"]["verdict"] == own
    assert ("is better" in controls.conclusion(asked)) == (own == "supported")
    controls.figure_order(table)


def test_nothing_trained_is_not_tested(results):
    table, own = (controls.answers(CPU, asked) for asked in (controls.questions(), controls.own_attention_questions()))
    assert {v["verdict"] for v in controls.verdicts(table, own, CPU).values()} == {"not tested at this budget"}
    assert controls.conclusion(own).count("0 of ") == 8 and controls.first_recipe().gain_db_ours.isna().all()
    controls.figure_order(table)
    controls.figure_gradients(pd.DataFrame(
        {"update": [0], "rule": ["iso"], "angle_degrees": [0.9], "norm_ratio": [np.nan]}))
