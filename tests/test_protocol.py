"""The Bicubic rows and the traps, against known answers. Tests of real images need IKM_DATA."""
import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch

from ikmlib import config, datasets
from ikmlib.layers import attention_range, contextual_attention, proportion_transform
from ikmlib.study import protocol


def needs(*sets):
    missing = [name for name in sets if not datasets.is_installed(name)]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A fresh machine: no image set but the embedded ones."""
    monkeypatch.delenv("IKM_DATA", raising=False)
    monkeypatch.setenv("IKM_CACHE", str(tmp_path))


# --- Bicubic rows ---------------------------------------------------------------------------------------------------


def paper_table(**changes):
    """What `bicubic_table` gives if ours are the paper's numbers on Set5 and Set14, some changed by so many dB."""
    paper = pd.read_csv(config.PAPER / "table1.csv").query("method == 'Bicubic'").set_index("scale")
    rows = pd.DataFrame([(s, scale, "i", 0.0, 0.0, paper[f"{s}_psnr"][scale] + changes.get(f"{s}_x{scale}", 0),
                          paper[f"{s}_ssim"][scale]) for s in ("Set5", "Set14") for scale in (2, 3, 4)],
                        columns=["set", "scale", "image", "psnr_y", "ssim_y", "psnr_matlab", "ssim_matlab"])
    return protocol.bicubic_table(rows)


@needs("Set5")
def test_set5_rows_are_the_papers_to_the_last_digit_at_x2_and_x4():
    rows = protocol.bicubic_rows(("Set5",))
    table = protocol.bicubic_table(rows).query("set == 'Set5'").set_index("scale")
    assert len(rows) == 15 and list(table.scored) == ["5 images"] * 3
    assert (table.psnr_ours[2], table.ssim_ours[2]) == (33.64, 0.9292)
    assert (table.psnr_ours[4], table.ssim_ours[4]) == (28.42, 0.8101)
    assert (table.loc[[2, 4], ["psnr_difference", "ssim_difference"]] == 0).all(axis=None)
    assert abs(table.psnr_difference[3]) <= 0.0101 and abs(table.ssim_difference[3]) <= 0.001
    assert list(table.psnr_float_y) == pytest.approx([33.68, 30.41, 28.43], abs=0.011)


@needs("Set14")
def test_set14_needs_its_grey_image_on_its_own_values():
    rows = protocol.bicubic_rows(("Set14",), scales=(2,))
    table = protocol.bicubic_table(rows).query("set == 'Set14' and scale == 2").iloc[0]
    assert (table.psnr_ours, table.ssim_ours) == (30.22, 0.8683)
    assert rows.psnr_y.mean() == pytest.approx(30.33, abs=0.011)
    gap = rows.psnr_matlab - rows.psnr_y
    assert rows.image[gap.idxmin()] == "bridge" and gap.min() < -1.2 < gap.drop(gap.idxmin()).min()


def test_a_fresh_machine_scores_the_embedded_images_and_says_so(bare):
    rows = protocol.bicubic_rows(scales=(2,))
    table = protocol.bicubic_table(rows)
    benchmarks = table[table["set"].isin(config.BENCHMARKS)]
    assert set(rows["set"]) == {"embedded-test"} and len(rows) == 2
    assert len(benchmarks) == 15 and set(benchmarks.scored) == {"not installed"} and benchmarks.psnr_ours.isna().all()
    embedded = table[table["set"] == "embedded-test"].set_index("scale")
    assert embedded.scored[2] == "2 images; no published number"
    assert 25 < embedded.psnr_float_y[2] < 45 and math.isnan(embedded.psnr_paper[2])
    verdict = protocol.bicubic_verdict(table)
    assert verdict["verdict"] == "not tested at this budget" and "Set5" in verdict["because"]


def test_unknown_sets_are_refused():
    with pytest.raises(ValueError, match="Set6"):
        protocol.bicubic_rows(("Set6",))


@pytest.mark.parametrize(("changes", "verdict", "count"), [
    ({}, "supported", "8 of 8"),
    ({"Set14_x3": 0.5}, "supported", "8 of 8"),     # the claim is about x2 and x4
    ({"Set14_x4": 0.01}, "mixed", "7 of 8"),
    ({"Set5_x2": -0.006}, "mixed", "7 of 8"),
    ({"Set5_x2": 0.004}, "supported", "8 of 8"),    # the last printed digit is the same
])
def test_verdict_counts_numbers_equal_to_the_last_digit(changes, verdict, count):
    said = protocol.bicubic_verdict(paper_table(**changes))
    assert said["verdict"] == verdict and count in said["ours"]
    assert "Urban100" in said["because"] and set(said) == {"paper", "ours", "verdict", "because"}


def test_verdict_is_not_supported_if_nothing_is_equal():
    table = paper_table()
    table[["psnr_difference", "ssim_difference"]] += 0.01
    assert protocol.bicubic_verdict(table)["verdict"] == "not supported"


# --- traps of the protocol ------------------------------------------------------------------------------------------


@needs("Set5", "Set5_LR")
def test_only_the_matlab_recipe_gives_matlabs_files():
    table = protocol.recipe_table().set_index(["scale", "recipe"])
    assert set(table.reference) == {"MATLAB's files"}
    matlab = table.xs(protocol.MATLAB, level="recipe")
    assert list(matlab.levels) == [0, 0, 0] and list(matlab.differing) == [0, 0, 0]
    assert (table.drop(index=protocol.MATLAB, level="recipe").levels > 0).all()
    assert table.levels[4, "torch, antialias=True"] == 16
    assert table.change_db[4, "torch, antialias=False"] < -0.5
    assert abs(table.change_db[4, "torch, antialias=True"]) < 0.01


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_recipes_agree_where_they_must(scale):
    flat = np.full((12 * scale, 10 * scale, 3), (17, 130, 240), np.uint8)
    for lr in protocol.lr_recipes(flat, scale).values():
        assert lr.shape == (12, 10, 3) and lr.dtype == np.uint8 and (lr == (17, 130, 240)).all()
    hr = np.random.default_rng(0).integers(0, 256, (32 * scale, 32 * scale, 3), dtype=np.uint8)
    lrs = {name: lr.astype(int) for name, lr in protocol.lr_recipes(hr, scale).items()}
    error = np.abs(lrs["torch, antialias=True"] - lrs["MATLAB, rounded once"])
    assert error[3:-3, 3:-3].max() == 0 and error.max() > 5     # the same kernel: only its borders differ
    assert np.abs(lrs["MATLAB, rounded once"] - lrs[protocol.MATLAB]).max() <= 2


def test_rounding_costs_what_is_derived():
    random = np.random.default_rng(0)
    y = random.uniform(16, 235, 1_000_000)
    noisy = y + random.normal(0, 3.2, y.size)   # about 38 dB
    exact, rounded = (10 * math.log10(255**2 / np.mean((f(noisy) - f(y)) ** 2)) for f in (lambda v: v, np.round))
    assert exact - rounded == pytest.approx(protocol.rounding_cost(exact), rel=0.05)


def test_a_grey_image_loses_what_the_narrower_range_gains(bare):
    source, gap = protocol.grey_gap(2)
    assert source == "embedded-test, made grey" and gap == pytest.approx(20 * math.log10(219 / 255), abs=0.03)


def test_scorers_differ_in_the_known_directions(bare):
    score = protocol.score_variants(2)
    assert 0.001 < score["psnr"] - score["psnr rounded"] < 0.3
    assert score["psnr rgb"] < score["psnr"] - 0.5
    assert 0 < abs(score["ssim shifted"] - score["ssim"]) < 0.001
    assert 0.001 < abs(score["ssim box"] - score["ssim"]) < 0.03


@needs("Set14")
def test_overflow_of_unclipped_lr():
    shares = protocol.overflow(4)
    assert shares.idxmax() == "Set14 ppt3" and shares.max() == pytest.approx(7.6, abs=0.1)


def test_overflow_counts_what_leaves_the_range(monkeypatch):
    step = np.zeros((32, 32, 3), np.uint8)
    step[:, 16:] = 255      # cubic kernels overshoot on both sides of an edge
    monkeypatch.setattr(protocol.datasets, "is_installed", lambda name: True)
    images = {"step": step, "flat": step[:, :8], "mild": step // 4 + 60}
    monkeypatch.setattr(protocol.datasets, "load", lambda name: images)
    shares = protocol.overflow(2)
    columns = protocol._imresize_float(step, 0.5)[0, :, 0].round()
    assert shares["Set14 step"] == 100 * np.mean((columns < 0) | (columns > 255)) > 0
    assert shares["Set14 flat"] == shares["Set14 mild"] == 0


def test_bsd100_is_apart_from_the_training_set():
    assert protocol.training_overlap() == (0, 100)


# --- traps of the method --------------------------------------------------------------------------------------------


def test_released_attention_knows_signed_channels_only():
    state = torch.random.get_rng_state()
    released, strict = protocol.network_attention(False), protocol.network_attention(True)
    assert torch.equal(state, torch.random.get_rng_state())
    assert [len(a) for a in released] == [64 + 12 * i for depth in (6, 5, 4, 4, 5, 6) for i in range(depth)]
    after_relu = torch.cat([a[64:] for a in released])
    assert (after_relu == 1.5).all() and not protocol.informative(after_relu).any()
    assert protocol.informative(torch.cat([a[:64] for a in released])).double().mean() > 0.9
    assert protocol.informative(torch.cat([a[64:] for a in strict])).double().mean() > 0.9


def test_attention_range_is_reached_and_never_left():
    low, high = attention_range()
    assert (round(low, 3), round(high, 3)) == (1.353, 1.783)
    corners = torch.tensor(list(itertools.product((0.0, 1.0), repeat=9))).reshape(-1, 1, 3, 3)
    inside = torch.rand(2000, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    for pooled in (corners, inside):
        a = proportion_transform(pooled)
        assert low - 1e-6 <= a.min() and a.max() <= high + 1e-6
    x = -torch.ones(1, 1, 9, 9)
    x[..., :3, :3] = 1      # one bright cell: an image that reaches both ends, up to its sign
    assert contextual_attention(x, 3).max().item() == pytest.approx(high)
    assert contextual_attention(-x, 3).min().item() == pytest.approx(low)


def test_iso_is_the_vanilla_gradient_over_the_batch():
    g = protocol.iso_gradients()
    unit = g["vanilla"].abs().max()
    assert unit > 0 and g["literal"].shape == (12, 64, 3, 3)
    assert (g["literal"] - g["vanilla"]).abs().max() < 1e-12 * unit
    assert (g["literal"] - g["iso"]).abs().max() < 1e-12 * unit
    assert (g["literal"] - g["autograd"] / 8).abs().max() > 0.01 * unit
    assert 0.999 < torch.cosine_similarity(g["iso"].flatten(), g["autograd"].flatten(), 0) < 1 - 1e-8


def test_costs_agree_but_for_the_known_misprints():
    costs = protocol.cost_table()
    wrong = costs[~costs.equal].drop_duplicates(["paper", "ours"])
    assert costs[costs.table.isin(["Table I", "Table III"])].equal.all() and len(costs) == 32
    assert [(row.paper, round(row.ours, 1)) for row in wrong.itertuples()] == [
        (1390.0, 1390.9), (3436.7, 3436.9), (1380.3, 1380.5), (60.0, 59.9)]


# --- all together ---------------------------------------------------------------------------------------------------


def test_every_trap_has_a_size_unit_and_source_on_a_fresh_machine(bare):
    table = protocol.traps()
    assert list(table.columns) == ["trap", "what_goes_wrong", "size", "unit", "source"]
    assert np.isfinite(table["size"]).all() and (table[["unit", "source"]] != "").all(axis=None)
    assert not table.duplicated(["trap", "what_goes_wrong"]).any()
    assert table[table.unit == "dB"]["size"].abs().max() > 0.5
    assert not table.source.str.contains("Set5|Set14").any() and table.source.str.contains("embedded-test").any()


def test_figures_name_their_axes(bare):
    plt = pytest.importorskip("matplotlib.pyplot")
    rows = [("border", "not shaved", 0.007, "dB"), ("luma", "RGB", -1.9, "dB"), ("BSD100", "files", 100, "of 100")]
    sizes = pd.DataFrame(rows, columns=["trap", "what_goes_wrong", "size", "unit"])
    for figure in (protocol.figure_recipes(), protocol.figure_sizes(sizes), protocol.figure_attention()):
        figure.draw_without_rendering()
        assert all(axis.get_xlabel() or axis.get_ylabel() for axis in figure.axes)
        plt.close(figure)
    labels = [t.get_text() for t in protocol.figure_sizes(sizes).axes[0].get_yticklabels()]
    assert labels == ["border: not shaved", "luma: RGB"]
    plt.close("all")
