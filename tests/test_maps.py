"""Attention maps: what is read from a network, the split of their variance, their shapes, and the verdict's words."""
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import tiny

from ikmlib import config
from ikmlib.files import save_torch
from ikmlib.layers import IKMConv2d, attending, contextual_attention
from ikmlib.models import ARCHITECTURES, DenseUnit, SRNetwork
from ikmlib.study import maps, notebook, records
from ikmlib.study.weights import trained_network

random = np.random.default_rng(0)
SHAPES = {name: np.array(cells, dtype=float) for name, cells in maps.SHAPES.items()}


def picture(height=40, width=36):
    return random.integers(0, 256, (height, width, 3), dtype=np.uint8)


# --- networks and their attention -----------------------------------------------------------------------------------


def test_a_units_first_layer_shows_all_its_attention():
    """It is that of the unit's input, whole; later layers add channels that came out of a ReLU, and 1.5 on them."""
    torch.manual_seed(0)
    model, lr, inputs, others = SRNetwork(ARCHITECTURES["uhdb"], 2), picture(), [], []
    for unit in (m for m in model.modules() if isinstance(m, DenseUnit)):
        unit.register_forward_pre_hook(lambda _, args: inputs.append(contextual_attention(args[0], 3)[0].numpy()))
    found = maps.unit_attention(model, lr)
    assert found.shape == (6, 64, 3, 3) and min(np.ptp(unit) for unit in found) > 0.01
    np.testing.assert_array_equal(found, np.stack(inputs))
    with attending(model, lambda layer, own: others.append(own()) or others[-1]):
        maps.super_resolve(model, lr)
    assert len(others) == 30 and [a for a in others if isinstance(a, float)] == [1.5] * 24


def test_reading_attention_leaves_the_network_as_it_was():
    model, lr = tiny().build(), picture()
    before = maps.super_resolve(model, lr)
    maps.unit_attention(model, lr)
    assert not any(m.overrides for m in model.modules() if isinstance(m, IKMConv2d))
    np.testing.assert_array_equal(maps.super_resolve(model, lr), before)


def test_weights_are_found_read_and_missed(results):
    here, gone = tiny(seed=0), tiny(seed=1)
    weights = replace(here, seed=7).build().state_dict()   # not those of the seed
    save_torch({"key": here.id, "model": weights}, here.folder / "weights.pt")
    networks = maps.trained([here, gone])
    assert list(networks) == [here] and trained_network(gone) is None
    np.testing.assert_array_equal(networks[here].head.weight.detach().cpu(), weights["head.weight"])
    assert maps.trained([]) == {}


def test_quarters_are_the_corners_of_the_image():
    image = np.arange(5 * 7).reshape(5, 7, 1)
    found = maps.quarters(image)
    assert [q.shape for q in found] == [(2, 3, 1)] * 4
    assert [q[0, 0, 0] for q in found] == [0, 4, 21, 25] and found[3][-1, -1, 0] == 34


def test_collected_attention_has_an_image_and_its_quarters():
    models, images = [tiny(seed).build() for seed in (0, 1)], [picture(), picture(33, 50), picture(48, 20)[..., :1]]
    whole, parts, compositions = maps.collect(models, images)
    assert whole.shape == (2, 3, 2, 8, 3, 3) and parts.shape == (2, 3, 4, 2, 8, 3, 3)
    assert compositions.shape == (3, 3, 3)
    quarter = maps.imresize(images[1][:32], 0.5)[:8, -12:]
    np.testing.assert_allclose(parts[1, 1, 1], maps.unit_attention(models[1], quarter), rtol=1e-6)
    with pytest.raises(ValueError, match="two or more images, not 1"):
        maps.collect(models, images[:1])


# --- variance -------------------------------------------------------------------------------------------------------


def test_variance_parts_add_up_and_find_known_variances():
    static, image, part = 3 * random.normal(size=(1, 4, 300)), 2 * random.normal(size=(400, 1, 300)), \
        random.normal(size=(400, 4, 300))
    a = static + image + part
    found = maps.variance_parts(a)
    assert sum(found) == pytest.approx(a.var())
    assert found == pytest.approx((static.var(), 4 + 1 / 4, 3 / 4), rel=0.02)   # 1/Q of the noise is in the means
    assert maps.intraclass_correlation(a) == pytest.approx(4 / (4 + 1), abs=0.01)
    assert maps.intraclass_correlation(static + part) == pytest.approx(0, abs=0.01)
    assert maps.intraclass_correlation(static + image + 0 * part) == pytest.approx(1)


def test_intraclass_correlation_is_the_ratio_of_mean_squares():
    """ICC(3,1) from the two-way table of Shrout and Fleiss (1979): their six targets, four judges, 0.71."""
    ratings = np.array([(9, 2, 5, 8), (6, 1, 3, 2), (8, 4, 6, 8), (7, 1, 2, 6), (10, 5, 6, 9), (6, 2, 4, 7)])
    assert maps.intraclass_correlation(ratings[..., None]) == pytest.approx(0.7148, abs=5e-5)


def test_image_ratios_average_to_the_share_between_images():
    whole = random.normal(size=(2, 5, 3, 4, 3, 3)) + random.normal(size=(1, 1, 3, 4, 3, 3))
    ratios = maps.image_ratios(whole)
    assert ratios.shape == (2, 5, 3)
    static, between, within = maps.variance_parts(whole[1, :, 2][:, None])
    assert within == 0 and ratios[1, :, 2].mean() == pytest.approx(between / static)


# --- shapes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("i", range(len(SHAPES)))
def test_a_pure_shape_has_all_the_energy(i):
    template = list(SHAPES.values())[i]
    found = maps.shape_shares(1.5 + np.array([0.2 * template, -0.1 * template]))   # two channels, either sign
    np.testing.assert_allclose(found, np.eye(4)[i], atol=1e-12)


def test_shares_add_up_and_a_mixture_is_its_squared_weights():
    laplace, horizontal, vertical = (t / np.linalg.norm(t) for t in SHAPES.values())
    corners = np.array([(1, 0, -1), (0, 0, 0), (-1, 0, 1)]) / 2   # orthogonal to all three
    mixture = 1.5 + 3 * laplace + 1 * horizontal + 2 * vertical + 4 * corners
    np.testing.assert_allclose(maps.shape_shares(mixture[None]), np.array([9, 1, 4, 16]) / 30)
    assert maps.shape_shares(random.normal(size=(7, 5, 3, 3))).sum(-1) == pytest.approx(np.ones(7))


def test_exchangeable_cells_give_the_shares_of_chance():
    """Attention of white noise has no shape: one eighth each, whatever the transform does to the masks."""
    noise = torch.randn(300, 16, 24, 24, generator=torch.Generator().manual_seed(0))
    shares = maps.shape_shares(contextual_attention(noise, 3).numpy()).mean(0)
    np.testing.assert_allclose(shares, [maps.CHANCE] * 3 + [5 / 8], atol=0.01)


def test_shapes_of_images_leave_out_what_all_images_share():
    own = random.normal(size=(1, 6, 1, 1, 1, 1)) * SHAPES["horizontal Prewitt"]
    found = maps.own_shapes(np.broadcast_to(own + 5 * SHAPES["Laplace"], (1, 6, 2, 4, 3, 3)))
    np.testing.assert_allclose(found, np.broadcast_to([0, 1, 0, 0], found.shape), atol=1e-9)


def test_rank_correlation_is_spearmans():
    x, y = np.array([1.0, 2, 3, 4, 50]), np.array([2.0, 1, 4, 3, 5])   # squared rank differences add up to 4
    assert maps.rank_correlation(x, y[None]).mean == pytest.approx(1 - 6 * 4 / (5 * 24))
    inverse = maps.rank_correlation(x, np.stack([-x ** 3, 1 - x]))
    assert (inverse.mean, inverse.low, inverse.high) == pytest.approx((-1, -1, -1)) and inverse.seeds == 2


def test_interval_of_a_correlation_covers_it():
    """Normal pairs of correlation 0.8 (Spearman 0.786): the interval has the width that Fisher's z predicts; and where
    trainings differ, it is wider."""
    x = random.normal(size=400)
    y = 0.8 * x + 0.6 * random.normal(size=400)
    d = maps.rank_correlation(x, y[None])
    assert d.low < 0.786 < d.high <= 1
    assert np.arctanh(d.high) - np.arctanh(d.low) == pytest.approx(2 * 1.96 / np.sqrt(397), rel=0.25)
    spread = maps.rank_correlation(x, np.stack([y, y + x, y - x]))
    assert spread.high - spread.low > 4 * (d.high - d.low)


def test_composition_is_the_mean_luma_of_the_cells():
    image = np.zeros((6, 9, 3), np.uint8)
    image[:2, 3:6] = 255
    np.testing.assert_allclose(maps.composition(image), [[16, 235, 16], [16, 16, 16], [16, 16, 16]])


# --- tables, verdict, figures ---------------------------------------------------------------------------------------


def made_up(shapes, seeds=3, images=40, units=2, follow=True):
    """Attention whose image-specific part mixes the named shapes, as much of each as the composition has, or not."""
    names = list(shapes)
    templates = np.array([SHAPES[s] / np.linalg.norm(SHAPES[s]) for s in names])
    size = random.normal(size=(images, len(names)))
    attention = size if follow else random.normal(size=size.shape)
    signs = random.choice([-1, 1], size=(seeds, 1, units, 4, 1, 1))
    own = signs * np.einsum("bi,ijk->bjk", attention, templates)[:, None, None]
    whole = 1.5 + 0.02 * own + 0.005 * random.normal(size=(1, 1, units, 4, 3, 3))
    parts = whole[:, :, None] + 0.01 * random.normal(size=(seeds, images, 4, units, 4, 3, 3))
    return maps.Attention(whole, parts, 100 + 9 * np.einsum("bi,ijk->bjk", size, templates))


def test_tables_hold_every_unit_and_their_mean():
    measured = {"trained": made_up(["Laplace"]), "untrained": made_up(["vertical Prewitt"])}
    variance = maps.variance_table(measured)
    assert list(variance.unit) == ["1", "2"] * 2 + ["all"] * 2
    shares = variance[["quarters_static", "quarters_between", "quarters_within"]]
    assert shares.sum(axis=1).to_numpy() == pytest.approx(np.ones(6))
    units = variance[(variance.network == "trained") & (variance.unit != "all")]
    total = variance[(variance.network == "trained") & (variance.unit == "all")]
    assert total.icc.item() == pytest.approx(units.icc.mean()) and (units.icc > 0.3).all()
    shapes = maps.shape_table(measured).set_index(["network", "part", "unit"])
    assert len(shapes) == 12
    assert shapes.Laplace["trained", "of the image", "all"] == pytest.approx(1)
    assert shapes["vertical Prewitt"]["untrained", "of the image", "2"] == pytest.approx(1)


BOTH = ("Laplace", "horizontal Prewitt")


@pytest.mark.parametrize(("shapes", "options", "verdict"), [
    (BOTH, {}, "supported"), (BOTH, {"follow": False}, "undecided"),
    (("vertical Prewitt", "horizontal Prewitt"), {}, "mixed"), (BOTH, {"seeds": 2}, "not tested at this budget")])
def test_c10_asks_for_both_shapes_where_the_image_has_them_in_three_seeds(shapes, options, verdict):
    measured = {"trained": made_up(shapes, **options)}
    found = maps.c10(measured, config.PROFILES["cpu"])
    assert found["verdict"] == verdict and found["ours"].count("Laplace") == 2 and "vertical" not in found["ours"]
    table = maps.question_table(measured).set_index("question")
    assert table.value["Laplace, less 1/8"] == pytest.approx(
        maps.own_shapes(measured["trained"].whole)[..., 0].mean() - 1 / 8)
    assert (table.low <= table.value).all() and len(table) == 7
    if verdict == "supported":
        assert table.value["Laplace as in the image"] == pytest.approx(1)


def test_c10_without_weights_is_not_tested():
    found = maps.c10({}, config.PROFILES["cpu"])
    assert found["verdict"] == "not tested at this budget" and "no weights" in found["ours"]


def test_the_hardest_window_is_where_the_error_is():
    hr = picture(64, 80)
    sr = hr.copy()
    sr[24:40, 48:64] ^= 128
    assert maps.hardest_window(sr, hr, 16) == (slice(24, 40), slice(48, 64))


def test_figures_from_untrained_networks(monkeypatch):
    network = tiny().build()
    monkeypatch.setattr(records, "test_images", lambda profile, data: {"a": {"b": picture(), "c": picture()}})
    measured = maps.measure({tiny(): network}, config.PROFILES["smoke"])
    np.testing.assert_array_equal(measured["trained"].whole, measured["untrained"].whole)   # the same weights
    notebook.style()
    assert len(maps.figure_shares(measured).axes) == 2
    assert len(maps.figure_composition(measured["trained"]).axes) == 3
    figure = maps.figure_pictures(network, measured["trained"].whole[0], units=(1, 2))
    assert len(figure.axes) == 3 * (4 + 3 * 2) + 1   # three photographs and the colour bar
    assert maps.measure({}, config.PROFILES["smoke"]) == {}
