"""Figs. 5 and 6: what a trained network's attention looks like, and how much of it belongs to the image.

In the released form a dense unit has one set of attention maps: its layers share the C input channels, and the channels
they add come out of a ReLU, where attention is 1.5 for every image. A unit's first layer therefore shows all there is.
Letters as in `layers`; also S networks (seeds), U dense units, Q parts of an image.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from tqdm import tqdm

from ikmlib import datasets
from ikmlib.config import Profile
from ikmlib.data import crop_to_multiple, imresize, to_rgb
from ikmlib.layers import attending
from ikmlib.metrics import luma, psnr_y
from ikmlib.models import DenseUnit, SRNetwork
from ikmlib.study import records
from ikmlib.study.comparisons import claim
from ikmlib.study.records import Run
from ikmlib.study.stats import Difference, Waiting, half_width, paired, standard_error
from ikmlib.study.weights import trained_network
from ikmlib.trainers import pairs, restored, super_resolve

# The shapes that the paper names, and the vertical twin of the second as a control. "Horizontal" as everywhere in
# image processing: the filter that finds horizontal edges. The eight-neighbour Laplace has a cosine of 0.95 with the
# four-neighbour one.
SHAPES = {
    "Laplace": ((-1, -1, -1), (-1, 8, -1), (-1, -1, -1)),
    "horizontal Prewitt": ((1, 1, 1), (0, 0, 0), (-1, -1, -1)),
    "vertical Prewitt": ((1, 0, -1), (1, 0, -1), (1, 0, -1)),
}
REST = "the other five dimensions"
CHANCE = 1 / 8           # a shape's expected share if the nine cells are exchangeable: one of eight dimensions
LEAST_SPECIFIC = 0.1     # of attention's variance between images, for C10
LEAST = 0.05             # of the energy, or of a correlation: what is below is not worth a claim
DRAWN = ("embedded-test", "embedded-val")   # photographs that may be shown; their licences: datasets.SETS


# --- networks and their attention -----------------------------------------------------------------------------------


def trained(runs: Iterable[Run]) -> dict[Run, SRNetwork]:
    """The networks of those runs whose weights are at hand."""
    networks = {run: trained_network(run) for run in runs}
    return {run: network for run, network in networks.items() if network is not None}


def _ready(run: Run) -> SRNetwork:
    return run.build().to(records.default_device()).eval()


def unit_attention(model: SRNetwork, lr_uint8: np.ndarray) -> np.ndarray:
    """Attention of the first layer of every dense unit on one LR image: uint8 (h, w, 3) -> (U, C, k, k)."""
    first, found = {unit.convs[0] for unit in model.modules() if isinstance(unit, DenseUnit)}, []

    def record(conv, own):
        attention = own()
        if conv in first:
            found.append(attention[0].cpu().numpy())
        return attention

    with attending(model, record):
        super_resolve(model, lr_uint8)
    return np.stack(found)


def quarters(image: np.ndarray) -> list[np.ndarray]:
    """The four quarters of (H, W, C), all of one size; of an odd number of lines the middle one is left out."""
    h, w = image.shape[0] // 2, image.shape[1] // 2
    return [image[rows, columns] for rows in (slice(h), slice(-h, None)) for columns in (slice(w), slice(-w, None))]


def composition(image: np.ndarray) -> np.ndarray:
    """Where an image is bright: mean luma of the cells that attention has, uint8 (H, W, 3) -> (3, 3)."""
    return F.adaptive_avg_pool2d(torch.from_numpy(luma(image))[None], 3)[0].numpy()


class Attention(NamedTuple):
    """Attention of S networks on B whole images, and on the Q = 4 quarters of each, taken as images of their own."""

    whole: np.ndarray          # (S, B, U, C, k, k)
    parts: np.ndarray          # (S, B, Q, U, C, k, k)
    compositions: np.ndarray   # (B, 3, 3), of the whole images


def collect(models: Sequence[SRNetwork], hr_images: Sequence[np.ndarray]) -> Attention:
    """Attention of networks on uint8 HR images after their own down-sampling. Raises ValueError for fewer than two."""
    if len(hr_images) < 2:
        raise ValueError(f"variance between images needs two or more images, not {len(hr_images)}")
    whole, parts = [], []
    for model in models:
        lrs = [imresize(crop_to_multiple(to_rgb(hr), model.scale), 1 / model.scale) for hr in hr_images]
        whole.append([unit_attention(model, lr) for lr in tqdm(lrs, "attention", leave=False, delay=2)])
        parts.append([[unit_attention(model, part) for part in quarters(lr)]
                      for lr in tqdm(lrs, "attention of quarters", leave=False, delay=2)])
    return Attention(np.array(whole), np.array(parts), np.array([composition(to_rgb(hr)) for hr in hr_images]))


def measure(networks: Mapping[Run, SRNetwork], profile: Profile) -> dict[str, Attention]:
    """Attention on the profile's test images: "trained", and as a control "untrained", the first run before training.

    Empty if there is no network.
    """
    if not networks:
        return {}
    first = next(iter(networks))
    sets = records.test_images(profile, first.data)
    images = [image for named in sets.values() for image in named.values()]
    return {"trained": collect(list(networks.values()), images),
            "untrained": collect([_ready(first)], images)}


# --- variance: between images, within images ------------------------------------------------------------------------


def variance_parts(attention: np.ndarray) -> tuple[float, float, float]:
    """Variance of attention (B, Q, ...), split: (static, between images, within images); they add up to the whole.

    static   of the mean over images: what channel, cell and place in the image have whatever the image
    between  of an image's deviation from it, mean over the image's parts
    within   of the parts around that mean (0 if Q = 1)
    """
    a = np.asarray(attention, dtype=float)
    static = a.mean(0)
    own = a - static
    image = own.mean(1, keepdims=True)
    return float(static.var()), float(np.mean(image ** 2)), float(np.mean((own - image) ** 2))


def intraclass_correlation(attention: np.ndarray) -> float:
    """ICC(3,1) of attention (B, Q, ...), Q >= 2: 1 if an image's parts deviate alike, 0 if like those of other images.

    Two-way, places fixed: (MSB - MSE) / (MSB + (Q - 1) MSE), written with the shares of `variance_parts`.
    """
    _, between, within = variance_parts(attention)
    return (between - within / (attention.shape[1] - 1)) / (between + within)


def image_ratios(whole: np.ndarray) -> np.ndarray:
    """Each image's own deviation, mean square, over the static variance of its unit: (S, B, U, C, k, k) -> (S, B, U).

    With r their mean over images, the share of the variance that lies between images is r / (1 + r).
    """
    static = whole.mean(1, keepdims=True)
    return ((whole - static) ** 2).mean((3, 4, 5)) / static.var((3, 4, 5))


def variance_table(measured: Mapping[str, Attention]) -> pd.DataFrame:
    """A row a network and unit, and the mean over units; all means over seeds.

    Columns: deviation_percent, the root mean square of an image's deviation from the mean over images, in percent of
    1.5; whole_between, its share of the variance on whole images; on quarters the three shares of `variance_parts`;
    and icc.
    """
    rows = []
    for name, (whole, parts, _) in measured.items():
        for u in range(whole.shape[2]):
            for each, quarter in zip(whole[:, :, u], parts[:, :, :, u], strict=True):
                static, between, _ = variance_parts(each[:, None])
                shares = np.array(variance_parts(quarter)) / quarter.var(dtype=float)
                rows.append((name, str(u + 1), 100 * between ** 0.5 / 1.5, between / (static + between), *shares,
                             intraclass_correlation(quarter)))
    table = pd.DataFrame(rows, columns=["network", "unit", "deviation_percent", "whole_between", "quarters_static",
                                        "quarters_between", "quarters_within", "icc"])
    return _with_means(table, ["network"])


def _with_means(table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Means over seeds by `keys` and unit; below each group the mean over units, unit "all"."""
    table = pd.concat([table, table.assign(unit="all")])
    return table.groupby([*keys, "unit"], sort=False).mean().reset_index()


# --- shapes ---------------------------------------------------------------------------------------------------------


def shape_shares(maps: np.ndarray) -> np.ndarray:
    """Shares of the SHAPES, and of the rest, in the energy of C maps around their means: (..., C, 3, 3) -> (..., 4).

    A shape's energy is the squared projection on it. The three are orthogonal to each other and to a constant, and so
    is the rest: together eight dimensions, the shares add up to 1.
    """
    templates = np.array(list(SHAPES.values()), dtype=float).reshape(len(SHAPES), 9)
    templates /= np.linalg.norm(templates, axis=1, keepdims=True)
    cells = maps.reshape(*maps.shape[:-2], 9).astype(float)
    cells = cells - cells.mean(-1, keepdims=True)
    energy = ((cells @ templates.T) ** 2).sum(-2)
    total = (cells ** 2).sum((-2, -1))[..., None]
    return np.concatenate([energy, total - energy.sum(-1, keepdims=True)], -1) / total


def own_shapes(whole: np.ndarray) -> np.ndarray:
    """Shape shares of each image's deviation from the mean over images: (S, B, U, C, 3, 3) -> (S, B, U, 4)."""
    return shape_shares(whole - whole.mean(1, keepdims=True))


def shape_table(measured: Mapping[str, Attention]) -> pd.DataFrame:
    """Shape shares of the two parts of whole images' attention, by network and unit; means over images and seeds."""
    rows = []
    for name, (whole, *_) in measured.items():
        for part, shares in (("of the image", own_shapes(whole).mean(1)), ("static", shape_shares(whole.mean(1)))):
            rows += [(name, part, str(u + 1), *seed[u]) for u in range(whole.shape[2]) for seed in shares]
    table = pd.DataFrame(rows, columns=["network", "part", "unit", *SHAPES, REST])
    return _with_means(table, ["network", "part"])


def rank_correlation(x: np.ndarray, y: np.ndarray) -> Difference:
    """Spearman's correlation over images of x (B,) and y (S, B), B > 2, mean over seeds, and its 95 % interval.

    The interval is made as that of `stats.paired`; the standard error over images is the jackknife's.
    """
    from scipy.stats import spearmanr

    (seeds, images), kept = y.shape, ~np.eye(y.shape[1], dtype=bool)
    of_seed = np.array([spearmanr(x, row).statistic for row in y])
    without = np.array([np.mean([spearmanr(x[k], row[k]).statistic for row in y]) for k in kept])   # each image
    over_seeds = (standard_error(of_seed),) if seeds > 1 else ()
    errors = ((float(without.std() * (images - 1) ** 0.5), images - 1), *over_seeds)
    mean, half = float(of_seed.mean()), half_width(errors)
    return Difference(mean, mean - half, mean + half, seeds, images, "rank correlation", errors)


def paired_shapes(attention: Attention) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Shape -> its share in each image's composition (B,) and in its attention, mean over units (S, B).

    Of both, what deviates from the mean over images.
    """
    bright = attention.compositions - attention.compositions.mean(0)
    ours, theirs = shape_shares(bright[:, None]), own_shapes(attention.whole).mean(2)
    return {shape: (ours[:, i], theirs[..., i]) for i, shape in enumerate(SHAPES)}


# --- the verdict ----------------------------------------------------------------------------------------------------


def questions(attention: Attention) -> dict[str, Difference]:
    """What the rule for C10 asks, and the same of the vertical Prewitt, which the paper does not name."""
    ratios = image_ratios(attention.whole).mean(2)
    shares = (max(r, 0) / (1 + max(r, 0)) - LEAST_SPECIFIC for r in paired(ratios).interval)
    found = {f"variance between images, less {LEAST_SPECIFIC:g}:":
             Difference(*shares, *ratios.shape, "of the variance")}
    for shape, (bright, share) in paired_shapes(attention).items():
        found[f"{shape}, less 1/8:"] = replace(paired(share - CHANCE), unit="of the energy")
        found[f"{shape} as in the image:"] = rank_correlation(bright, share)
    return found


def question_table(measured: Mapping[str, Attention]) -> pd.DataFrame:
    """A row a network and question: value, low and high (95 % interval), images, seeds."""
    rows = [(name, question.rstrip(":"), d.mean, d.low, d.high, d.images, d.seeds)
            for name, attention in measured.items() for question, d in questions(attention).items()]
    return pd.DataFrame(rows, columns=["network", "question", "value", "low", "high", "images", "seeds"])


def c10(measured: Mapping[str, Attention], profile: Profile) -> dict[str, str]:
    """C10, for `Page.verdict`: attention differs between images, has the shapes that the paper names, and has each
    where the image's composition has it."""
    found: dict[str, Difference | Waiting] = {"attention": Waiting("no weights of a finished run are at hand")}
    if measured:
        found = {name: d for name, d in questions(measured["trained"]).items() if not name.startswith("vertical")}
    words = claim(found, profile, paper="an image composed around its centre gets an isotropic Laplace, one with "
                                        "vertical contrast a horizontal Prewitt (one image each, Figs. 5 and 6)",
                  holds="Each of the five holds if its whole 95 % interval lies above 0, and fails if it lies below "
                        f"{LEAST:g}; means over the dense units.", smallest=LEAST)
    if not measured:
        return words
    icc = variance_table(measured).set_index(["network", "unit"]).icc["trained", "all"]
    return {**words, "ours": f"{words['ours']}; intraclass correlation of an image's quarters {icc:.2f}"}


# --- figures --------------------------------------------------------------------------------------------------------


def hardest_window(sr: np.ndarray, hr: np.ndarray, side: int, step: int = 8) -> tuple[slice, slice]:
    """The square of `side` pixels, on a grid of `step`, whose squared error of luma is largest."""
    error = torch.from_numpy((luma(sr) - luma(hr)) ** 2)[None]
    mean = F.avg_pool2d(error, side, stride=step)[0]
    top, left = (step * int(i) for i in np.unravel_index(int(mean.argmax()), mean.shape))
    return slice(top, top + side), slice(left, left + side)


def _draw_pictures(axes, model: SRNetwork, name: str, hr: np.ndarray, sr: np.ndarray, side: int) -> None:
    """The whole photograph with attention's cells and the crop; then the crop of HR, bicubic and SR."""
    from matplotlib.patches import Rectangle

    scale = model.scale
    bicubic = imresize(imresize(hr, 1 / scale), scale)
    window = hardest_window(bicubic, hr, side)
    axes[0].imshow(hr)
    for i in (1, 2):
        axes[0].axhline(i * hr.shape[0] / 3, color="w", lw=0.8, ls=":")
        axes[0].axvline(i * hr.shape[1] / 3, color="w", lw=0.8, ls=":")
    axes[0].add_patch(Rectangle((window[1].start, window[0].start), side, side, fill=False, ec="w", lw=1.8))
    axes[0].set_title(name, fontsize=9)
    for axis, image, title in zip(axes[1:], (hr, bicubic, sr), ("HR", "bicubic", "SR"), strict=True):
        score = "" if image is hr else f"\n{psnr_y(image, hr, shave=scale):.2f} dB"
        axis.imshow(image[window], interpolation="nearest")
        axis.set_title(title + score, fontsize=9)


def _draw_maps(axes, maps: np.ndarray, norm):
    """Maps of attention (rows, units, 3, 3) on axes (rows, units); returns the last image, for the colour bar."""
    for axis, cells in zip(axes.flat, maps.reshape(-1, *maps.shape[-2:]), strict=True):
        shown = axis.imshow(cells, cmap="PuOr_r", norm=norm)
        axis.spines[:].set(visible=True, color="0.8")
    for axis, label in zip(axes[:, 0], ("mean", "1st", "2nd"), strict=True):
        axis.set_ylabel(label, fontsize=9, rotation=0, ha="right", va="center")
    return shown


def figure_pictures(model: SRNetwork, whole: np.ndarray, units: Sequence[int] = (1, 2, 4, 6), side: int = 96):
    """Photographs of DRAWN, a row each: HR, bicubic, SR, and attention of some units: mean over channels, two channels.

    The channels are those that vary most over the test images, `whole` (B, U, C, 3, 3). One colour scale for all.
    """
    import matplotlib.pyplot as plt
    from matplotlib.colors import CenteredNorm

    chosen = np.array(units)[:, None] - 1
    varying = np.argsort(-whole.var(0).mean((-2, -1)), 1)[chosen[:, 0], :2]
    hr_images = {name: image for names in map(datasets.load, DRAWN) for name, image in names.items()}
    drawn = list(restored(model, pairs(hr_images, model.scale)))
    attention = np.stack([unit_attention(model, imresize(hr, 1 / model.scale)) for _, _, hr in drawn])
    means, single = attention[:, chosen[:, 0], None].mean(3), attention[:, chosen, varying]
    maps = np.concatenate([means, single], 2).swapaxes(1, 2)   # (pictures, 3, units, 3, 3)
    norm = CenteredNorm(1.5, np.abs(maps - 1.5).max())
    figure = plt.figure(figsize=(9, 0.4 + 1.65 * len(drawn)))
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    grid = figure.add_gridspec(3 * len(drawn), 4 + len(units), width_ratios=[1.5, 1, 1, 1, *[0.38] * len(units)])
    for i, (name, sr, hr) in enumerate(drawn):
        _draw_pictures([figure.add_subplot(grid[3 * i:3 * i + 3, j]) for j in range(4)], model, name, hr, sr, side)
        axes = np.array([[figure.add_subplot(grid[3 * i + j, 4 + u]) for u in range(len(units))] for j in range(3)])
        shown = _draw_maps(axes, maps[i], norm)
        for axis, u in zip(axes[0], units, strict=True):
            axis.set_title(f"unit {u}", fontsize=9)
    for axis in figure.axes:
        axis.set(xticks=[], yticks=[])
        axis.grid(False)
    bar = figure.colorbar(shown, ax=figure.axes, shrink=0.6, aspect=30, pad=0.01)
    bar.ax.tick_params(labelsize=9)
    return figure


def figure_shares(measured: Mapping[str, Attention]):
    """Left: where the variance of attention on quarters lies, by unit. Right: shapes of the images' own deviations.

    By chance, the mean of an image's four quarters has a quarter of their variance: ICC 0.
    """
    import matplotlib.pyplot as plt

    table = variance_table(measured).query("network == 'trained' and unit != 'all'")
    units = np.arange(1, len(table) + 1)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.6))
    bottom = np.zeros(len(table))
    for column, colour, label in (("static", "0.75", "static"), ("between", "C0", "between images"),
                                  ("within", "C1", "within images")):
        share = table[f"quarters_{column}"].to_numpy()
        left.bar(units, share, bottom=bottom, color=colour, label=label, width=0.7)
        bottom += share
    left.hlines(table.quarters_static + (1 - table.quarters_static) / 4, units - 0.35, units + 0.35, color="w", ls="--",
                lw=1.8)
    left.set(xlabel="dense unit (dashed: between, by chance)", ylabel="share of the variance, quarters",
             xticks=units, ylim=(0, 1))
    for i, shape in enumerate(SHAPES):
        for name, face in (("untrained", "none"), ("trained", f"C{i}")):
            shares = own_shapes(measured[name].whole)[..., i]
            mean, low, high = np.array([paired(shares[:, :, u]).interval for u in range(len(units))]).T
            x = units + 0.26 * (i - 1) + (0.05 if name == "untrained" else -0.05)
            right.errorbar(x, mean, [mean - low, high - mean], fmt="os^"[i], color=f"C{i}", mfc=face, capsize=3, ms=6,
                           alpha=1 if name == "trained" else 0.6, label=shape if name == "trained" else None)
    right.axhline(CHANCE, color="0.3", lw=1, ls="--", label="chance, 1/8")
    right.set(xlabel="dense unit (hollow: before training)", ylabel="share of the image-specific part", xticks=units)
    right.set_ylim(bottom=0)
    for axis in (left, right):
        axis.grid(False, axis="x")
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2 if axis is right else 3, fontsize=10,
                    handlelength=1, columnspacing=1)
    return figure


def figure_composition(attention: Attention):
    """A point an image: a shape's share in its composition, and in its attention (mean over units and seeds)."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(SHAPES), figsize=(9, 3.7), sharex=True, sharey=True)
    for i, (axis, (shape, (bright, share))) in enumerate(zip(panels, paired_shapes(attention).items(), strict=True)):
        axis.scatter(bright, share.mean(0), s=22, color=f"C{i}", alpha=0.7, lw=0)
        axis.axhline(CHANCE, color="0.3", lw=1, ls="--")
        axis.axvline(CHANCE, color="0.3", lw=1, ls="--")
        axis.set_title(f"{shape}\nrank correlation {rank_correlation(bright, share).mean:.2f}", fontsize=12)
        axis.set(xlabel="share in mean luma")
    panels[0].set(ylabel="share in attention", ylim=(0, None), xlim=(0, None))
    return figure
