"""The bench of notebook 13: schemes are what they say, the table has its shape. Times are never tested."""
from dataclasses import replace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import definitions

from ikmlib import config
from ikmlib.layers import attending
from ikmlib.models import DenseUnit

bench = definitions("13")


@pytest.fixture(scope="module")
def costs():
    """The quick bench's table, of networks with two dense units of one layer."""
    with pytest.MonkeyPatch.context() as patch:
        for name, arch in bench.ARCHITECTURES.items():
            patch.setitem(bench.ARCHITECTURES, name, replace(arch, blocks=1, depths=(1, 1)))
        return bench.bench(quick=True)


@pytest.mark.parametrize("schemes", [("vanilla", "vanilla, by inputs"), ("IKM as released", "IKM, ours")])
@pytest.mark.parametrize("subject", ["layer", "uhdb"])
def test_two_schemes_of_one_function_agree_in_outputs_and_gradients(subject, schemes):
    models = [bench.build(subject, scheme, 16).double().cpu() for scheme in schemes]
    x = torch.randn(3, 16 if subject == "layer" else 3, 8, 9, dtype=torch.float64)
    outputs = [model(x) for model in models]
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), list(model.parameters()))
                                 for y, model in zip(outputs, models, strict=True)))


def test_the_released_scheme_groups_by_image_and_attends_in_every_layer(monkeypatch):
    unit = next(m for m in bench.build("uhdb", "IKM as released", 16).cpu().modules() if isinstance(m, DenseUnit))
    attended, groups, plain = [], [], F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda *a, **kw: groups.append(kw.get("groups", 1)) or plain(*a, **kw))
    with attending(unit, lambda layer, own: attended.append(own().shape[1]) or own()):
        unit(torch.randn(3, 16, 8, 8))
    assert attended == [16, 19, 22, 25, 28, 31] and groups == [3] * 6 + [1]


def test_table_has_a_row_a_case_a_pass_and_a_scheme_and_becomes_figures(costs):
    assert len(costs) == 2 * (3 + 5 * len(bench.SCHEMES)) and not costs.drop(columns="peak_mb").isna().any(axis=None)
    assert (costs.loc[costs.scheme == "vanilla", ["ratio", "ratio_q1", "ratio_q3"]] == 1).all(axis=None)
    assert (costs.repetitions == 3).all() and costs.ratio.between(costs.ratio_q1, costs.ratio_q3).all()
    assert [len(axes.lines) for axes in bench.figure_sweep(costs, "size", "peak_mb").axes] == [len(bench.SCHEMES)] * 2


def test_peak_memory_sees_what_a_call_allocates():
    peak = bench.peak_megabytes(lambda: torch.ones(16_000_000, device=bench.records.default_device()).sum())   # 64 MB
    assert peak != peak or 60 < peak < 80   # NaN: this system does not tell


@pytest.mark.parametrize(("inference", "training", "expected"), [
    (1.2, 1.3, "supported"), (1.2, 1.2, "mixed"), (1.1, 1.2, "not supported")])
def test_the_verdict_follows_the_rule(costs, inference, training, expected):
    found = bench.judge(costs.assign(ratio=costs["pass"].map({"inference": inference, "training": training})))
    assert found["verdict"] == expected
    assert f"rebuilt here, takes {inference:.2f} and {training:.2f} times" in found["ours"]
    assert ("our variant has the price" in found["ours"]) == (expected == "not supported")


def test_notebook_13_reads_the_committed_measurement(executed, monkeypatch):
    monkeypatch.delenv("IKM_RESULTS", raising=False)
    shown = executed("13", "cpu")
    committed = pd.read_csv(config.ROOT / "results/cpu/cost_main.csv")
    pd.testing.assert_frame_equal(shown.tables["cost_main"], committed, atol=2e-6)
    assert shown.verdicts["C11"]["verdict"] == "supported"
