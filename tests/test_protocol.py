"""Notebook 00's own functions against known answers. Tests of real images need IKM_DATA."""
import ast
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import code

from ikmlib import config, datasets
from ikmlib.study.comparisons import rounding_cost


def needs(*sets):
    missing = [name for name in sets if not datasets.is_installed(name)]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@pytest.fixture(scope="module")
def protocol():
    """What the notebook imports and defines, without what it runs."""
    space = {"MATLAB": "MATLAB imresize"}
    for cell in code(config.ROOT / "notebooks" / "00_protocol.ipynb"):
        for node in ast.parse(cell).body:
            if isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef)):
                exec(ast.unparse(node), space)
    return SimpleNamespace(**space)


@needs("Set5")
def test_set5_rows_are_the_papers_to_the_last_digit_at_x2_and_x4(protocol):
    table = protocol.bicubic_table(protocol.bicubic_rows(("Set5",))).iloc[:3].set_index("scale")
    assert (table.psnr_ours[2], table.ssim_ours[2]) == (33.64, 0.9292)
    assert (table.psnr_ours[4], table.ssim_ours[4]) == (28.42, 0.8101)
    assert abs(table.psnr_difference[3]) <= 0.0101 and abs(table.ssim_difference[3]) <= 0.001
    assert list(table.psnr_float_y) == pytest.approx([33.68, 30.41, 28.43], abs=0.011)


@needs("Set14")
def test_set14_needs_its_grey_image_on_its_own_values(protocol):
    rows = protocol.bicubic_rows(("Set14",), scales=(2,))
    table = protocol.bicubic_table(rows).set_index(["set", "scale"]).loc["Set14", 2]
    assert (table.psnr_ours, table.ssim_ours) == (30.22, 0.8683)
    assert rows.psnr_y.mean() == pytest.approx(30.33, abs=0.011)
    gap = rows.psnr_matlab - rows.psnr_y
    assert rows.image[gap.idxmin()] == "bridge" and gap.min() < -1.2 < gap.drop(gap.idxmin()).min()


@pytest.mark.parametrize(("scale", "change", "verdict", "count"), [
    (2, 0.004, "supported", "4 of 4"),    # the last printed digit is the same
    (3, 0.5, "supported", "4 of 4"),      # the claim is about x2 and x4
    (4, 0.01, "mixed", "3 of 4")])
def test_verdict_counts_numbers_equal_to_the_last_digit(protocol, scale, change, verdict, count):
    paper = pd.read_csv(config.PAPER / "table1.csv").query("method == 'Bicubic'")
    rows = pd.DataFrame({"set": "Set5", "scale": paper.scale, "psnr_matlab": paper.Set5_psnr + change * (
        paper.scale == scale), "ssim_matlab": paper.Set5_ssim, "psnr_y": 0, "ssim_y": 0})
    said = protocol.bicubic_verdict(protocol.bicubic_table(rows))
    assert said["verdict"] == verdict and count in said["ours"] and "Urban100" in said["because"]


@needs("Set5", "Set5_LR")
def test_only_the_matlab_recipe_gives_matlabs_files(protocol):
    table = protocol.recipe_table().set_index(["scale", "recipe"])
    assert list(table.xs("MATLAB imresize", level="recipe").levels) == [0, 0, 0]
    assert set(table.reference) == {"MATLAB's files"} and table.levels[4, "torch, antialias=True"] == 16
    assert table.change_db[4, "torch, antialias=False"] < -0.5


def test_rounding_costs_what_is_derived():
    y, noise = np.random.default_rng(0).random((2, 1_000_000)) * [[219], [11]]
    noisy = y + noise - 5.5   # about 38 dB
    exact, rounded = (10 * math.log10(255**2 / np.mean((f(noisy) - f(y)) ** 2)) for f in (lambda v: v, np.round))
    assert exact - rounded == pytest.approx(rounding_cost(exact), rel=0.05)


def test_on_a_fresh_machine_the_notebook_measures_known_sizes(executed, results, monkeypatch, tmp_path):
    monkeypatch.delenv("IKM_DATA", raising=False)
    monkeypatch.setenv("IKM_CACHE", str(tmp_path))
    page = executed("00", "smoke", times=2)   # and no trap is listed twice
    assert page.verdicts["P1"]["verdict"] == "not tested at this budget"
    size = page.tables["protocol_traps"].set_index("what_goes_wrong")["size"]
    known = {"files also in BSDS500 train and test": 0, "files also in all of BSDS500": 100,
             "values outside 0..255": 0.1117, "x >= 0: inputs with constant attention": 31.8694,
             "inputs that come out of a ReLU": 100 * 744 / 2664,
             "least possible, k = 3": 1.3534, "largest possible, k = 3": 1.7829, "angle to the exact gradient": 0.3679,
             "Y rounded, an image at 38 dB": -0.0697}
    assert size[list(known)].to_dict() == pytest.approx(known, abs=1e-4)
    assert size["MATLAB imresize: largest error"] == size["x >= 0: largest |a - 1.5|"] == 0
    assert size["Algorithm 1 minus the vanilla gradient / B"] < 1e-12 and size["RGB instead of Y"] < -0.5
    assert size["own values, not as RGB"] == pytest.approx(20 * math.log10(219 / 255), abs=0.03)
    assert len(size) == 27 and size.index.is_unique and np.isfinite(size).all()


def test_released_attention_knows_signed_channels_only(protocol):
    released, strict = protocol.network_attention(False), protocol.network_attention(True)
    assert [len(a) for a in released] == [64 + 12 * i for depth in (6, 5, 4, 4, 5, 6) for i in range(depth)]
    assert (torch.cat([a[64:] for a in released]) == 1.5).all()
    for signed in (torch.cat([a[:64] for a in released]), torch.cat([a[64:] for a in strict])):
        assert protocol.informative(signed).double().mean() > 0.9
