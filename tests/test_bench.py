"""The bench: it runs, its schemes are what they say, its table has its shape. Times are never tested."""
from dataclasses import replace

import pandas as pd
import pytest
import torch

from ikmlib.__main__ import main
from ikmlib.layers import attending
from ikmlib.models import DenseUnit
from ikmlib.tools import bench
from ikmlib.tools.bench import BY_INPUTS, OURS, RELEASED, SCHEMES, VANILLA, Case

CPU = torch.device("cpu")
TINY = [Case("main", "layer", 2, 6, 16), Case("main", "uhdb", 2, 6, 16), Case("main", "uhdn", 2, 6, 16),
        *(Case(sweep, "uhdb", 1, 6, 16) for sweep in ("batch", "size", "channels"))]


@pytest.fixture(scope="module")
def costs():
    """The bench's table, of networks with two dense units of one layer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "ARCHITECTURES", {name: replace(arch, blocks=1, depths=(1, 1))
                                               for name, arch in bench.ARCHITECTURES.items()})
        return bench.table(TINY, seconds=0.0, device=CPU, show=False)


@pytest.mark.parametrize(("one", "other"), [(VANILLA, BY_INPUTS), (RELEASED, OURS)])
@pytest.mark.parametrize("subject", ["layer", "uhdb"])
def test_two_schemes_of_one_function_agree_in_outputs_and_gradients(subject, one, other):
    models = [bench.build(subject, scheme, 16).double() for scheme in (one, other)]
    x = torch.randn(3, 16 if subject == "layer" else 3, 8, 9, dtype=torch.float64)
    outputs = [model(x) for model in models]
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), list(model.parameters()))
                                 for y, model in zip(outputs, models, strict=True)))


def test_the_released_scheme_groups_by_image_and_attends_in_every_layer(monkeypatch):
    unit = next(m for m in bench.build("uhdb", RELEASED, 16).modules() if isinstance(m, DenseUnit))
    attended, groups, plain = [], [], torch.nn.functional.conv2d
    monkeypatch.setattr(torch.nn.functional, "conv2d",
                        lambda *a, **kw: (groups.append(kw.get("groups", 1)), plain(*a, **kw))[1])
    with attending(unit, lambda layer, own: attended.append(own().shape[1]) or own()):
        unit(torch.randn(3, 16, 8, 8))
    assert attended == [16, 19, 22, 25, 28, 31] and groups == [3] * 6 + [1]


def test_table_has_a_row_a_case_a_pass_and_a_scheme(costs):
    assert len(costs) == 2 * (3 + 5 * len(SCHEMES))
    assert not costs.drop(columns="peak_mb").isna().any(axis=None)
    vanilla = costs[costs.scheme == VANILLA]
    assert (vanilla[["ratio", "ratio_q1", "ratio_q3"]] == 1).all(axis=None)
    assert (costs.ms > 0).all() and (costs.repetitions >= 3).all()
    assert ((costs.ratio_q1 <= costs.ratio) & (costs.ratio <= costs.ratio_q3)).all()


def test_main_table_shows_the_price_beside_the_rearranged_network(costs):
    table = bench.main_table(costs)
    assert len(table) == len(costs[costs.sweep == "main"]) and set(table.subject) == set(bench.NAMES.values())
    assert (table.over_by_inputs.isna() == (table.subject == "one layer")).all()
    rows = table[(table.subject == "U-HDN") & (table["pass"] == "training")].set_index("scheme")
    assert rows.over_by_inputs[BY_INPUTS] == 1
    assert rows.over_by_inputs[OURS] == pytest.approx(rows.ms[OURS] / rows.ms[BY_INPUTS])


def test_peak_memory_sees_what_a_call_allocates():
    peak = bench.peak_megabytes(lambda: torch.ones(16_000_000).sum(), CPU)   # 64 MB
    assert peak != peak or 60 < peak < 80   # NaN: this system does not tell


def row(scheme, name, ratio):
    return {"sweep": "main", "channels": 64, "subject": "uhdn", "batch": 8, "size": 24, "scheme": scheme, "pass": name,
            "ratio": ratio, "ms": {BY_INPUTS: 8.0, OURS: 10.0}.get(scheme, 20.0)}


@pytest.mark.parametrize(("inference", "training", "expected"), [
    (1.2, 1.3, "supported"), (1.2, 1.2, "mixed"), (1.1, 1.2, "not supported")])
def test_the_verdict_follows_the_rule(inference, training, expected):
    frame = pd.DataFrame([row(scheme, name, ratio) for scheme in SCHEMES
                          for name, ratio in (("inference", inference), ("training", training))])
    found = bench.verdict(frame)
    assert found["verdict"] == expected and f"{inference:.2f} and {training:.2f}" in found["ours"]
    assert found["ours"].endswith("over a vanilla network rearranged the same way, ours 1.25 and 1.25")
    assert ("is the price" in found["ours"]) == (expected == "not supported")


def test_every_case_of_the_full_and_the_quick_bench_can_be_shown():
    for quick in (False, True):
        chosen = bench.cases(quick)
        assert {case.subject for case in chosen if case.sweep == "main"} == set(bench.NAMES)
        assert {case.sweep for case in chosen} == {"main", "batch", "size", "channels"}


@pytest.mark.parametrize(("sweep", "value"), [("batch", "ratio"), ("size", "peak_mb")])
def test_figure_has_a_line_a_scheme_in_both_panels(costs, sweep, value):
    pytest.importorskip("matplotlib")
    figure = bench.figure_sweep(costs, sweep, value)
    assert [len(axes.lines) for axes in figure.axes] == [len(SCHEMES)] * 2


def test_the_command_prints_and_writes(results, monkeypatch, capsys, costs):
    monkeypatch.setattr(bench, "cases", lambda quick: TINY[:1])
    assert main(["bench", "--quick", "--profile", "smoke"]) == 0
    assert "IKM as released" in capsys.readouterr().out
    assert len(pd.read_csv(results / "smoke" / "cost.csv")) == 6
    machine = pd.read_csv(results / "smoke" / "cost_machine.csv")
    assert {"device", "threads", "load_1min", "torch", "git_commit"} <= set(machine)


def test_rounds_are_pooled():
    once, thrice = (bench.table(TINY[:1], seconds=0.0, rounds=rounds, device=CPU, show=False) for rounds in (1, 3))
    assert (once.repetitions == 3).all() and (thrice.repetitions == 9).all()
    columns = ["subject", "pass", "scheme"]
    assert once[columns].equals(thrice[columns]) and (thrice.ratio_q1 <= thrice.ratio).all()
