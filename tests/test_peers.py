"""The comparison networks: their sizes and costs by the facts of their publications, and that each of them learns."""
import time

import numpy as np
import pytest
import torch
from conftest import definitions
from skimage.color import rgb2ycbcr

from ikmlib import datasets, metrics
from ikmlib.data import imresize
from ikmlib.models import SCALES, complexity
from ikmlib.peers import CARN, PEERS, OnLuma, build_peer, enlarge, luma, srcnn
from ikmlib.trainers import evaluate

# For x2, x3, x4, as the paper counts: #Params; giga multiply-adds; these with activations and pooling (of Table II's
# methods for x2). CARN's and CFSRCNN's include two frozen layers that shift the mean.
COSTS = {
    "srcnn": ([8_032] * 3, [1.388] * 3, [1.405] * 3),
    "vdsr": ([664_704] * 3, [114.861] * 3, [115.071] * 3),
    "lapsrn": ([435_344] * 3, [18.882, 8.447, 4.795], [18.923, 8.472, 4.814]),
    "drrn": ([297_216] * 3, [1274.418] * 3, [1275.546] * 3),
    "idn": ([715_331] * 3, [30.903, 13.735, 7.726], [30.977, 13.768, 7.745]),
    "carn": ([1_591_963] * 3, [41.879, 22.325, 17.077], [41.948, 22.362, 17.105]),
    "imdn": ([694_404, 703_059, 715_176], [29.848, 13.432, 7.686], [29.917, 13.463, 7.704]),
    "cfsrcnn": ([1_310_360, 1_495_000, 1_458_072], [87.102, 63.664, 58.651], [87.321, 63.798, 58.756]),
    "defian_s": ([1_027_610, 1_073_690, 1_064_474], [44.100, 20.568, 12.730], [44.183, 20.605, 12.751]),
    "edsr": ([40_729_603, 43_680_003, 43_089_923], [1760.415], [1760.769]),
    "rdn": ([5_616_515, 5_801_155, 5_764_227], [242.858], [243.024]),
    "rcan": ([15_444_643, 15_629_283, 15_592_355], [662.422], [663.528]),
    "oisr_rk3": ([41_926_769, 44_877_169, 44_287_089], [1811.398], [1812.128]),
    "csfm": ([12_071_875, 12_256_515, 12_219_587], [518.522], [519.938]),
}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", PEERS)
def test_cost_is_the_known_one_and_a_step_lowers_the_loss(name, scale):
    params, *operations = ((known + [None, None])[scale - 2] for known in COSTS[name])
    with torch.device("meta"):
        counted = build_peer(name, scale, counted=True)
    assert sum(p.numel() for p in counted.parameters()) == params
    for known, activations in zip(operations, (False, True), strict=True):
        if known:
            found, total = complexity(counted, scale, activations=activations)
            assert found == params and round(total / 1e9, 3) == known

    torch.manual_seed(0)
    model, x, target = build_peer(name, scale), torch.rand(1, 3, 6, 5), torch.rand(1, 3, 6 * scale, 5 * scale)
    y = model(x)
    assert y.shape == target.shape
    loss = (y - target).square().mean()
    loss.backward()
    unused = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert all(name == "carn" and key.startswith("upscale.") and f".x{scale}." not in key for key in unused), unused
    learning = [p for p in model.parameters() if p.grad is not None]
    length = sum(p.grad.square().sum() for p in learning)
    assert torch.isfinite(length) and length > 0
    with torch.no_grad():
        for p in learning:
            p -= 0.01 * loss / length * p.grad   # to first order, the loss falls by 1 %
        assert (model(x) - target).square().mean() < loss


@pytest.mark.parametrize(("build", "scale", "params", "giga"), [
    (lambda: srcnn(2, middle=1), 2, 8_129, None), (lambda: srcnn(2, bias=False), 2, 57_184, None),
    (lambda: build_peer("lapsrn", 2), 2, 435_344, 18.923), (lambda: build_peer("lapsrn", 4), 4, 870_112, None),
    (lambda: build_peer("idn", 2), 2, 552_769, None), (lambda: build_peer("rdn", 2), 2, 22_123_395, 956.309),
    (lambda: CARN(2, scales=(2,)), 2, 964_187, 41.948), (lambda: CARN(3, scales=(3,)), 3, 1_148_827, 22.362),
    (lambda: CARN(4, scales=(4,)), 4, 1_111_899, 17.105)])
def test_cost_of_other_variants(build, scale, params, giga):
    with torch.device("meta"):
        found, operations = complexity(build(), scale, activations=True)
    assert found == params and (giga is None or round(operations / 1e9, 3) == giga)


@pytest.mark.parametrize("scale", SCALES)
def test_a_network_on_luma_keeps_the_bicubic_chroma(scale):
    image = np.random.default_rng(0).integers(80, 176, size=(7, 9, 3), dtype=np.uint8)
    x = torch.from_numpy(image).movedim(2, 0)[None] / 255
    np.testing.assert_allclose(255 * luma(x)[0, 0], metrics.luma(image), atol=1e-4)
    bicubic = enlarge(x, scale)
    rounded = imresize(image, scale)   # twice, by half a level at most
    np.testing.assert_allclose(255 * bicubic[0].movedim(0, 2), rounded, atol=1.2)

    class Brighter(torch.nn.Module):
        def forward(self, y):
            return y + 0.1

    brighter = OnLuma(scale, Brighter(), enlarged=True)(x)
    before, after = (rgb2ycbcr(picture[0].movedim(0, 2).double().numpy()) for picture in (bicubic, brighter))
    np.testing.assert_allclose(after - before, np.broadcast_to([25.5, 0, 0], before.shape), atol=1e-3)


def test_imdn_has_the_official_names():
    parts = [f"c{i}" for i in range(1, 6)] + ["cca.conv_du.0", "cca.conv_du.2"]
    layers = ["fea_conv", "c.0", "LR_conv", "upsampler.0", *(f"IMDB{i}.{part}" for i in range(1, 7) for part in parts)]
    assert set(build_peer("imdn", 2).state_dict()) == {f"{layer}.{p}" for layer in layers for p in ("weight", "bias")}


def test_a_file_of_the_official_weights_is_scored_as_its_network(monkeypatch, tmp_path):
    images = {"noise": np.random.default_rng(0).integers(0, 256, size=(24, 32, 3), dtype=np.uint8)}
    monkeypatch.setattr(datasets, "load", lambda name: {"Set5": images}[name])
    model = build_peer("imdn", 2)
    torch.save({f"module.{name}": tensor for name, tensor in model.state_dict().items()}, tmp_path / "IMDN_x2.pth")
    found = definitions("02").score_official(tmp_path / "IMDN_x2.pth", 2)
    assert tuple(found) == tuple(evaluate(model, images, 2)[["psnr_y", "ssim_y"]].iloc[0])


def test_times_are_medians_in_milliseconds():
    class Slow(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.calls = torch.nn.Parameter(torch.ones(1)), 0

        def forward(self, x):
            self.calls += 1
            time.sleep(0.3 if self.calls in (1, 3) else 0.02)   # the first turn does not count, and one is an outlier
            return x

    table = definitions("02").enlarging({"slow": Slow()}, size=4, repetitions=3)
    assert 20 <= table.ms[0] < 200 and list(table.columns[:2]) == ["network", "ms"]


@pytest.mark.parametrize(("name", "scale", "named"), [("ms3", 2, "ms3.*allowed.*srcnn"), ("edsr", 5, "5.*2, 3, 4")])
def test_unknown_choices_are_named_with_what_is_allowed(name, scale, named):
    with pytest.raises(ValueError, match=named):
        build_peer(name, scale)
