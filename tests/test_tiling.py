"""Large images: band by band is the whole image, wherever attention comes from."""
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ikmlib import tiling
from ikmlib.models import ARCHITECTURES, Architecture, SRNetwork
from ikmlib.tiling import in_bands
from ikmlib.trainers import super_resolve
from ikmlib.upscale import Picture, enlarge

TINY = Architecture(blocks=2, depths=(2, 1, 1, 2), channels=8, growth=4)
IMAGE = np.random.default_rng(0).integers(0, 256, (61, 37, 3), dtype=np.uint8)
IMAGE[:40] //= 3   # not alike everywhere


def network(scale=2, **options):
    torch.manual_seed(0)
    model = SRNetwork(replace(TINY, **options), scale).double()
    with torch.no_grad():   # weights as large as trained ones: attention is to matter
        for p in model.parameters():
            p.mul_(2)
    return model


def pixels(image):
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255


@pytest.fixture
def small_bands(monkeypatch):
    """Bands of 8 rows, which cut through the cells of attention; returns the list of bands begun so far."""
    bands = []
    monkeypatch.setattr(tiling, "_band_rows", lambda *args: 8)
    start = tiling._WholeImage.next_band
    monkeypatch.setattr(tiling._WholeImage, "next_band", lambda self, *rows: (bands.append(rows), start(self, *rows)))
    return bands


ATTENTIONS = {"none": {"attention": "none"}, "ikm": {}, "strict": {"strict": True}, "mean": {"tau": "mean"},
              "strict mean": {"strict": True, "tau": "mean"}, "go": {"gradient": "go"}, "ca": {"attention": "ca"},
              "sa": {"attention": "sa"}, "k5": {"kernel": 5, "dilation": 2, "strict": True}}


@pytest.mark.parametrize("block", ["rb", "db", "rdb", "uhdb"])
@pytest.mark.parametrize("options", ATTENTIONS.values(), ids=ATTENTIONS)
@pytest.mark.parametrize("max_bytes", [1, 1 << 30], ids=["files", "memory"])
def test_bands_are_the_whole_image(block, options, max_bytes, small_bands):
    model, x = network(block=block, **options), pixels(IMAGE).double()
    found = in_bands(model, x, max_bytes=max_bytes, show=False)
    assert len(small_bands) > 8 * 10   # it was in bands
    with torch.no_grad():
        torch.testing.assert_close(found, model(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("size", [(5, 9), (17, 8), (50, 31)])
def test_every_scale_and_odd_sizes_in_float32(scale, size, small_bands):
    model, x = network(scale).float(), pixels(IMAGE[:size[0], :size[1]])
    with torch.no_grad():
        torch.testing.assert_close(in_bands(model, x, show=False), model(x), rtol=1e-4, atol=1e-4)


def test_attention_of_a_band_alone_would_be_another_image():
    """What the test above would miss if attention did not matter: tiles that attend to themselves."""
    model = network()
    whole, half = super_resolve(model, IMAGE), super_resolve(model, IMAGE[:40])
    assert (whole[:20] != half[:20]).mean() > 0.01


@pytest.mark.parametrize(("height", "width", "k"), [(7, 5, 3), (16, 9, 5), (12, 12, 3), (2, 3, 3)])
def test_sums_over_bands_are_adaptive_pooling(height, width, k):
    x, whole = torch.randn(1, 4, height, width, dtype=torch.float64), tiling._WholeImage(height)
    expected = F.adaptive_avg_pool2d(x, k)
    whole.next_run()
    for top in range(0, height, 3):
        crop, bottom = max(top - 1, 0), min(top + 3, height)
        whole.next_band(crop, top, bottom)
        with whole, pytest.raises(tiling._Unknown):
            F.adaptive_avg_pool2d(x[:, :, crop:bottom + 1], k)
    whole.next_run()
    whole.next_band(0, 0, height)
    with whole:   # of any part, now
        torch.testing.assert_close(F.adaptive_avg_pool2d(x[:, :, :1], k), expected)


def test_the_released_settings_convolve_nothing_twice(small_bands):
    """A run over the bands for each unit's own pooling, which stops before any convolution, and one that writes."""
    calls = []
    model = network()
    model.blocks[0].units[0].transition.register_forward_hook(lambda *a: calls.append(1))
    in_bands(model, pixels(IMAGE).double(), show=False)
    units, other = 2 * 4, 3   # head, fuse, upscaling with the tail
    assert len(calls) == 8 and len(small_bands) == 8 * (2 * units + other)


def test_fewer_bytes_fewer_rows():
    unit = SRNetwork(ARCHITECTURES["uhdb"], 2).blocks[0].units[0]
    few, many = (tiling._band_rows(unit, 1, 1920, 6, size << 20) for size in (256, 1024))
    assert 8 <= few < many
    assert tiling._band_rows(unit, 1, 10**6, 6, 1) == 8


def test_what_cannot_be_done_is_named():
    with pytest.raises(ValueError, match="median"):
        in_bands(network(tau="median"), pixels(IMAGE))
    with pytest.raises(ValueError, match="2, 3, 61, 37"):
        in_bands(network(), pixels(IMAGE).repeat(2, 1, 1, 1))


def test_an_image_too_large_for_the_memory_is_enlarged_in_bands(small_bands, monkeypatch):
    model, picture = network().float(), Picture((IMAGE / 255).astype(np.float32))
    whole = enlarge(model, picture).colour
    assert not small_bands and tiling.available_bytes(torch.device("cpu")) > 1 << 20
    monkeypatch.setattr(tiling, "available_bytes", lambda device: tiling.whole_bytes(model, 61, 37))   # half of it
    np.testing.assert_allclose(enlarge(model, picture).colour, whole, rtol=1e-4, atol=1e-4)
    assert small_bands
