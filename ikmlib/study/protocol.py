"""Is the scoring right? The paper's Bicubic rows, which need no training, and the size of every trap before a score.

A trap is a choice that papers seldom state and that moves a score, or a property of the method that its text hides. A
function computes the size of each; `traps` lists them all.
"""
from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from skimage.metrics import structural_similarity
from skimage.transform import resize
from torch import Tensor
from tqdm import tqdm

from ikmlib import config, datasets
from ikmlib.data import _contributions, crop_to_multiple, imresize, to_rgb
from ikmlib.fast import modulated_conv2d
from ikmlib.layers import attention_range, contextual_attention
from ikmlib.metrics import luma, psnr_y, ssim_y
from ikmlib.models import ARCHITECTURES, SCALES, Architecture, DenseUnit, SRNetwork, cost

DIGITS = {"psnr": 2, "ssim": 4}   # as the paper prints them
MATLAB = "MATLAB imresize"
BLUE, ORANGE = "#0173b2", "#de8f05"


# --- the Bicubic rows of Table I ------------------------------------------------------------------------------------


def bicubic(hr_uint8: np.ndarray, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """(SR, HR): HR (H, W, C) cropped to a multiple of `scale`; SR: it made LR and upscaled again by `imresize`."""
    hr = crop_to_multiple(hr_uint8, scale)
    return imresize(imresize(hr, 1 / scale), scale), hr


def bicubic_rows(sets: tuple[str, ...] = config.BENCHMARKS, scales: tuple[int, ...] = SCALES) -> pd.DataFrame:
    """Scores of bicubic upscaling of the installed ones among `sets` (none: of the embedded test images), whole images.

    A row an image: set, scale, image; psnr_y (dB), ssim_y on float Y with everything as RGB, the project's standard;
    psnr_matlab, ssim_matlab: Y rounded, a grey image on its own full-range values. Raises ValueError for unknown sets.
    """
    rows = []
    for name in [s for s in sets if datasets.is_installed(s)] or ["embedded-test"]:
        for image, pixels in tqdm(datasets.load(name).items(), f"bicubic, {name}", delay=2):
            for scale in scales:
                sr, hr = bicubic(pixels, scale)
                standard = (metric(to_rgb(sr), to_rgb(hr), shave=scale) for metric in (psnr_y, ssim_y))
                matlab = (metric(sr, hr, shave=scale, round_y=True) for metric in (psnr_y, ssim_y))
                rows.append((name, scale, image, *standard, *matlab))
    return pd.DataFrame(rows, columns=["set", "scale", "image", "psnr_y", "ssim_y", "psnr_matlab", "ssim_matlab"])


def bicubic_table(rows: pd.DataFrame) -> pd.DataFrame:
    """The paper's Bicubic rows beside ours, averaged and rounded to the printed digits: a row a set and scale.

    `rows`: from `bicubic_rows`. Every benchmark has its rows; `scored` says how many images were, or why none was.
    `..._ours` follows the MATLAB convention, `..._float_y` the project's standard.
    """
    paper = pd.read_csv(config.PAPER / "table1.csv").query("method == 'Bicubic'").set_index("scale")
    means, table = rows.groupby(["set", "scale"]).mean(numeric_only=True), []
    images = rows.groupby(["set", "scale"]).size()
    for name in dict.fromkeys([*config.BENCHMARKS, *rows["set"]]):
        published = name in config.BENCHMARKS
        for scale in paper.index:
            ours = means.loc[(name, scale)] if (name, scale) in means.index else None
            missing = "not scored in this profile" if datasets.is_installed(name) else "not installed"
            row = {"set": name, "scale": scale, "scored": missing if ours is None else f"{images[name, scale]} images"}
            row["scored"] += "" if published else "; no published number"
            for metric, digits in DIGITS.items():
                theirs = paper[f"{name}_{metric}"][scale] if published else math.nan
                matlab, standard = (math.nan if ours is None else round(ours[f"{metric}_{y}"], digits)
                                    for y in ("matlab", "y"))
                row |= {f"{metric}_paper": theirs, f"{metric}_ours": matlab,
                        f"{metric}_difference": round(matlab - theirs, digits), f"{metric}_float_y": standard}
            table.append(row)
    return pd.DataFrame(table)


def bicubic_verdict(table: pd.DataFrame) -> dict[str, str]:
    """Are the Bicubic rows reproduced to the last digit at x2 and x4? `bicubic_table` -> what `Page.verdict` takes.

    Supported if every number of the sets scored here is equal, not supported if none is, else mixed.
    """
    scored = table.dropna(subset=["psnr_difference"])
    numbers = scored.set_index("scale")[["psnr_difference", "ssim_difference"]].abs()
    asked, x3 = numbers[numbers.index != 3], numbers[numbers.index == 3].max()
    equal, total, sets = int((asked == 0).sum().sum()), asked.size, list(scored["set"].unique())
    absent = ", ".join(name for name in config.BENCHMARKS if name not in sets) or "none"
    verdict = "supported" if equal == total else "mixed" if equal else "not supported"
    because = "No set with published numbers is installed. "
    if total:
        because = f"{equal} of {total} numbers are equal to the last digit ({', '.join(sets)}). "
    if len(x3.dropna()):
        because += f"At x3 the largest differences are {x3.psnr_difference:.2f} dB and {x3.ssim_difference:.4f}. "
    return {"paper": "Bicubic rows of Table I at x2 and x4, PSNR and SSIM; the text does not state how Y is made",
            "ours": f"with rounded Y and grey images on their own values, {equal} of {total} numbers are equal",
            "verdict": verdict if total else "not tested at this budget",
            "because": because + f"Benchmarks not scored here: {absent}."}


# --- traps of the protocol ------------------------------------------------------------------------------------------


def calibration_images() -> tuple[str, dict[str, np.ndarray]]:
    """Set and RGB images that traps are measured on: Set5 where it is installed, else the embedded test images."""
    name = "Set5" if datasets.is_installed("Set5") else "embedded-test"
    return name, {image: to_rgb(pixels) for image, pixels in datasets.load(name).items()}


def _imresize_float(image: np.ndarray, scale: float) -> np.ndarray:
    """`imresize` neither rounded nor clipped: (H, W, C) -> (H', W', C) float64."""
    x = image.astype(np.float64)
    for _ in range(2):
        index, weights = _contributions(len(x), scale)
        matrix = np.zeros((len(index), len(x)))
        np.add.at(matrix, (np.arange(len(index))[:, None], index), weights)
        x = np.tensordot(matrix, x, 1).swapaxes(0, 1)
    return x


def lr_recipes(hr_uint8: np.ndarray, scale: int) -> dict[str, np.ndarray]:
    """HR (H, W, 3), sides multiples of `scale`, made LR by each recipe in use: name -> uint8 (H/s, W/s, 3)."""
    size = (hr_uint8.shape[0] // scale, hr_uint8.shape[1] // scale)
    x = torch.from_numpy(np.ascontiguousarray(hr_uint8)).permute(2, 0, 1)[None].double()
    unrounded = {"MATLAB, rounded once": _imresize_float(hr_uint8, 1 / scale)}
    for antialias in (True, False):
        lr = F.interpolate(x, size, mode="bicubic", antialias=antialias)[0]
        unrounded[f"torch, antialias={antialias}"] = lr.permute(1, 2, 0).numpy()
    unrounded["scikit-image, resize"] = resize(hr_uint8, size, order=3, anti_aliasing=True, preserve_range=True)
    return {MATLAB: imresize(hr_uint8, 1 / scale),
            **{name: np.floor(np.clip(lr, 0, 255) + 0.5).astype(np.uint8) for name, lr in unrounded.items()}}


def recipe_table(scales: tuple[int, ...] = SCALES) -> pd.DataFrame:
    """LR recipes against files made by MATLAB where Set5 and Set5_LR are installed, else against our imresize.

    A row a scale and recipe: levels (largest error, of 255), differing (% of values), psnr (dB, mean, of that LR
    upscaled by `imresize`), change_db (psnr minus that of the MATLAB recipe), reference.
    """
    name, images = calibration_images()
    known = datasets.load("Set5_LR") if name == "Set5" and datasets.is_installed("Set5_LR") else {}
    rows = []
    for scale in scales:
        for image, pixels in images.items():
            hr = crop_to_multiple(pixels, scale)
            lrs = lr_recipes(hr, scale)
            reference = known.get(f"x{scale}/{image}x{scale}", lrs[MATLAB]).astype(int)
            for recipe, lr in lrs.items():
                error = np.abs(lr - reference)
                psnr = psnr_y(imresize(lr, scale), hr, shave=scale)
                rows.append((scale, recipe, error.max(), 100 * (error > 0).mean(), psnr))
    frame = pd.DataFrame(rows, columns=["scale", "recipe", "levels", "differing", "psnr"])
    table = frame.groupby(["scale", "recipe"], sort=False, as_index=False).agg(
        {"levels": "max", "differing": "mean", "psnr": "mean"})
    standard = table[table.recipe == MATLAB].set_index("scale").psnr
    return table.assign(change_db=table.psnr - table.scale.map(standard),
                        reference="MATLAB's files" if known else "our imresize")


def score_variants(scale: int) -> pd.Series:
    """Bicubic upscaling as every scorer in use sees it, mean over the calibration images: PSNR in dB, SSIM."""
    rows, inner = [], slice(scale, -scale)
    wang = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    for pixels in calibration_images()[1].values():
        sr, hr = bicubic(pixels, scale)
        y, z = (luma(image)[inner, inner] for image in (sr, hr))
        rgb_error = np.mean((sr[inner, inner].astype(float) - hr[inner, inner]) ** 2)
        rows.append({
            "psnr": psnr_y(sr, hr, shave=scale), "psnr rounded": psnr_y(sr, hr, shave=scale, round_y=True),
            "psnr unshaved": psnr_y(sr, hr, shave=0), "psnr rgb": 10 * math.log10(255**2 / rgb_error),
            "ssim": ssim_y(sr, hr, shave=scale), "ssim shifted": structural_similarity(y - 16, z - 16, **wang),
            "ssim box": structural_similarity(y, z, data_range=255)})
    return pd.DataFrame(rows).mean()


def rounding_cost(psnr: float) -> float:
    """dB that an image of `psnr` dB loses by rounding both Y: two errors of variance 1/12 each add 1/6 to the MSE."""
    return 10 * math.log10(1 + 10 ** (psnr / 10) / 255**2 / 6)


def grey_gap(scale: int) -> tuple[str, float]:
    """Which grey image, and its PSNR on its own values minus that as RGB, in dB.

    Values lie in 0..255, Y in 16..235: 20 log10(219/255) is expected. The image is Set14's bridge where it is
    installed, else the first calibration image made grey.
    """
    name, images = calibration_images()
    source, grey = f"{name}, made grey", luma(next(iter(images.values())), round_y=True)[..., None].astype(np.uint8)
    if datasets.is_installed("Set14"):
        source, grey = "Set14 bridge", datasets.load("Set14")["bridge"]
    sr, hr = bicubic(grey, scale)
    return source, psnr_y(sr, hr, shave=scale) - psnr_y(to_rgb(sr), to_rgb(hr), shave=scale)


def overflow(scale: int) -> pd.Series:
    """% of rounded LR values that leave 0..255 and wrap around in uint8 unless clipped; index "set image"."""
    name = "Set14" if datasets.is_installed("Set14") else calibration_images()[0]
    shares = {}
    for image, pixels in datasets.load(name).items():
        lr = np.floor(_imresize_float(crop_to_multiple(pixels, scale), 1 / scale) + 0.5)
        shares[f"{name} {image}"] = 100 * np.mean((lr < 0) | (lr > 255))
    return pd.Series(shares)


def training_overlap() -> tuple[int, int]:
    """Files of BSD100 in the training set BSDS500 (train and test), and in all of BSDS500, by the registry's sha256."""
    files = pd.read_csv(datasets.REGISTRY)
    bsds, test = (files[files.path.str.startswith(folder)].sha256 for folder in ("BSDS500/", "BSDS500/val/"))
    return int(test.isin(bsds.drop(test.index)).sum()), int(test.isin(bsds).sum())


# --- traps of the method --------------------------------------------------------------------------------------------


def _patches(batch: int) -> Tensor:
    """Crops of an embedded photograph, the same on every machine: (batch, 3, 48, 48), at most 12, in 0..1."""
    image = torch.from_numpy(datasets.load("embedded-test")["coffee"]).permute(2, 0, 1).float() / 255
    return torch.stack([image[:, 48:96, 48 * b:48 * b + 48] for b in range(batch)])


def _untrained(strict: bool = False) -> SRNetwork:
    """Table III's U-HDB network before training, from seed 0; the caller's random state on the CPU is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SRNetwork(replace(ARCHITECTURES["uhdb"], strict=strict), 2).eval()


def network_attention(strict: bool) -> list[Tensor]:
    """Attention (Ci, 3, 3) of each of the 30 modulated convolutions of an untrained U-HDB, for a crop of a photograph.

    Of the Ci channels the first C = 64, the unit's input, are signed; the others come out of a ReLU. `strict`: x > 0.
    """
    model, attention = _untrained(strict), []

    def collect(unit, inputs):   # Eqs. 16-17, a layer at a time
        features = inputs[0]
        for conv in unit.convs:
            attention.append(contextual_attention(features, 3, strict=strict)[0])
            features = torch.cat([features, F.relu(conv(features))], 1)

    for module in model.modules():
        if isinstance(module, DenseUnit):
            module.register_forward_pre_hook(collect)
    with torch.no_grad():
        model(_patches(1))
    return attention


def informative(attention: Tensor) -> Tensor:
    """Channels whose attention differs between cells: (Ci, k, k) -> (Ci,) bool. In others it only scales the kernel."""
    return attention.flatten(1).amax(1) - attention.flatten(1).amin(1) > 1e-6


def iso_gradients(batch: int = 8) -> dict[str, Tensor]:
    """Kernel gradients (12, 64, 3, 3) of one layer on features of a photograph, for a random output gradient; double.

    "literal": Algorithm 1 as written, the mean of each image's own kernel gradient; "vanilla": a plain convolution's
    divided by B; "iso": this project's; "autograd": the exact derivative.
    """
    x = _untrained().head(_patches(batch)).detach().double()
    random = torch.Generator().manual_seed(0)
    weight, grad = (torch.randn(shape, generator=random, dtype=torch.double)
                    for shape in ((12, 64, 3, 3), (batch, 12, 48, 48)))
    attention = contextual_attention(x, 3)
    each = (attention[:, None] * weight).requires_grad_()   # (B, Co, Ci, 3, 3)
    y = torch.cat([F.conv2d(x[b:b + 1], each[b], padding=1) for b in range(batch)])
    gradients = {"literal": torch.autograd.grad(y, each, grad)[0].mean(0),
                 "vanilla": torch.nn.grad.conv2d_weight(x, weight.shape, grad, padding=1) / batch}
    weight.requires_grad_()
    for rule in ("iso", "autograd"):
        y = modulated_conv2d(x, weight, attention, padding=1, gradient=rule)
        gradients[rule] = torch.autograd.grad(y, weight, grad)[0]
    return gradients


def cost_columns(arch: Architecture, scale: int) -> dict[str, float]:
    """#Params (thousands) and #FLOPs (1e9) of a network, by their columns' names in `ikmlib/paper/`."""
    params, multi_adds = cost(arch, scale)
    return {"params_k": params / 1e3, "flops_g": multi_adds / 1e9}


def rounds_to(ours: float, printed: str) -> bool:
    """Does `ours`, rounded to the decimals of a number as printed, equal it?"""
    return round(ours, len(printed.partition(".")[2])) == float(printed)


def cost_table() -> pd.DataFrame:
    """#Params (thousands) and #FLOPs (1e9) that the paper prints for its own networks, beside ours: a row a number.

    table, network, quantity, paper, ours, and `equal`: whether ours rounds to the printed number.
    """
    def printed(table):
        return pd.read_csv(config.PAPER / f"table{table}.csv", dtype=str).to_dict("records")

    uhdn = ARCHITECTURES["uhdn"]
    networks = [("Table I", f"U-HDN x{row['scale']}", uhdn, row) for row in printed(1) if row["method"] == "U-HDN+IKM"]
    networks += [("Table III", row["architecture"], ARCHITECTURES[row["architecture"].lower().replace("-", "")], row)
                 for row in printed(3) if row["attention"] == "IKM"]
    networks += [("Table IV", f"k = {row['kernel']}, dilation {row['dilation']}, IKM {row['ikm']}",
                  replace(uhdn, kernel=int(row["kernel"]), dilation=int(row["dilation"])), row) for row in printed(4)]
    networks += [("Table V", f"residual {row['u_style_residual']}, hourglass {row['hourglass']}",
                  uhdn if row["hourglass"] == "yes" else replace(uhdn, depths=(5,) * 6), row) for row in printed(5)]
    rows = []
    for table, network, arch, row in networks:
        for quantity, ours in cost_columns(arch, int(row.get("scale", 2))).items():
            if text := row.get(quantity):   # Table IV prints no #FLOPs
                rows.append((table, network, quantity, float(text), ours, rounds_to(ours, text)))
    return pd.DataFrame(rows, columns=["table", "network", "quantity", "paper", "ours", "equal"])


# --- all of them ----------------------------------------------------------------------------------------------------


def _scoring_traps(scale: int) -> list[tuple]:
    set_name, rows = calibration_images()[0], []
    source = f"{set_name} x{scale}, bicubic"
    for lr in recipe_table((scale,)).itertuples():
        rows.append(("LR recipe", f"{lr.recipe}: largest error", lr.levels, "levels",
                     f"{set_name} x{scale}, to {lr.reference}"))
        if lr.recipe != MATLAB:
            rows.append(("LR recipe", lr.recipe, lr.change_db, "dB", source))
    score, (grey, gap), wrapped = score_variants(scale), grey_gap(scale), overflow(scale)
    in_training, in_all = training_overlap()
    return rows + [
        ("luma", "Y rounded", score["psnr rounded"] - score["psnr"], "dB", source),
        ("luma", "Y rounded, an image at 38 dB", -rounding_cost(38), "dB", "derived: MSE + 1/6"),
        ("luma", "RGB instead of Y", score["psnr rgb"] - score["psnr"], "dB", source),
        ("luma", "Y shifted to 0..219 (released code)", 1e3 * (score["ssim shifted"] - score["ssim"]),
         "0.001 SSIM", source),
        ("SSIM window", "7 x 7 box (scikit-image's default)", 1e3 * (score["ssim box"] - score["ssim"]),
         "0.001 SSIM", source),
        ("border", "not shaved", score["psnr unshaved"] - score["psnr"], "dB", source),
        ("grey image", "own values, not as RGB", gap, "dB", f"{grey} x{scale}, bicubic"),
        ("LR not clipped", "values that wrap around in uint8", wrapped.max(), "%", f"{wrapped.idxmax()} x{scale}"),
        ("BSD100", "files also in BSDS500 train and test", in_training, "of 100", "sha256, registry.csv"),
        ("BSD100", "files also in all of BSDS500", in_all, "of 100", "sha256, registry.csv"),
    ]


def _method_traps() -> list[tuple]:
    noise = torch.randn(8, 16, 48, 48, generator=torch.Generator().manual_seed(0))
    constant = (contextual_attention(F.relu(noise), 3) - 1.5).abs().max().item()
    released, strict = (100 * (1 - torch.cat([informative(a) for a in network_attention(s)]).double().mean().item())
                        for s in (False, True))
    (low, high), g, costs = attention_range(), iso_gradients(), cost_table()
    identity = (g["literal"] - g["vanilla"]).abs().max() / g["vanilla"].abs().max()
    angle = math.degrees(math.acos(F.cosine_similarity(g["iso"].flatten(), g["autograd"].flatten(), 0).item()))
    return [
        ("attention after ReLU", "x >= 0: largest |a - 1.5|", constant, "of a", "relu(noise)"),
        ("attention after ReLU", "x >= 0: inputs with constant attention", released, "% of them", "untrained U-HDB"),
        ("attention after ReLU", "x > 0: inputs with constant attention", strict, "% of them", "untrained U-HDB"),
        ("attention range", "least possible, k = 3", low, "of a", "derived: one empty cell"),
        ("attention range", "largest possible, k = 3", high, "of a", "derived: one full cell"),
        ("IsO", "Algorithm 1 minus the vanilla gradient / B", identity.item(), "of the largest", "one layer, B = 8"),
        ("IsO", "angle to the exact gradient", angle, "degrees", "one layer, B = 8"),
        ("misprints", "#Params, #FLOPs that ours do not round to", (~costs.equal).sum(), f"of {len(costs)}",
         "Tables I, III-V"),
    ]


def traps(scale: int = 2) -> pd.DataFrame:
    """All traps with their size: trap, what_goes_wrong, size, unit, source (where the number comes from).

    A size in dB or 0.001 SSIM is the mean score with the trap minus the standard one.
    """
    rows = [*_scoring_traps(scale), *_method_traps()]
    return pd.DataFrame(rows, columns=["trap", "what_goes_wrong", "size", "unit", "source"]).astype({"size": float})


# --- figures --------------------------------------------------------------------------------------------------------


def _axes(columns: int, width: float, height: float):
    """A figure (inches) and its axes side by side."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, columns, figsize=(width, height), layout="constrained")
    return figure, axes


def figure_recipes(scale: int = 4, side: int = 32):
    """Where each LR recipe errs: the upper right corner, `side` LR pixels wide, of a calibration image."""
    from matplotlib.colors import BoundaryNorm

    name, images = calibration_images()
    image = "butterfly" if name == "Set5" else "chelsea"
    hr = crop_to_multiple(images[image], scale)
    lrs = {recipe: lr[:side, -side:] for recipe, lr in lr_recipes(hr, scale).items()}
    figure, axes = _axes(len(lrs), 10, 3)
    levels = [0, 1, 2, 4, 8, 16, 32, 64, 128, 255]
    for axis, (recipe, lr) in zip(axes, lrs.items(), strict=True):
        error = np.abs(lr - lrs[MATLAB].astype(int)).max(2)
        shown = axis.imshow(error, cmap="viridis", norm=BoundaryNorm(levels, 256), interpolation="nearest")
        title = f"{recipe.replace(', ', chr(10))}\nup to {error.max()}"
        if recipe == MATLAB:
            axis.imshow(lr)
            title = f"{recipe}\n{name} {image}\nx{scale}, corner"
        axis.set_title(title, fontsize=11)
        axis.set(xlabel="LR pixels", xticks=[0, side - 1], yticks=[])
        axis.grid(False)
    figure.colorbar(shown, ax=axes, label="error, levels of 255", ticks=levels, pad=0.01)
    return figure


def figure_sizes(table: pd.DataFrame):
    """The traps of `traps` that move PSNR, in dB on a log axis, beside the gains that Table III reports for IKM."""
    psnr = table[(table.unit == "dB") & (table["size"] != 0)].sort_values("size", key=np.abs)
    scores = pd.read_csv(config.PAPER / "table3.csv").pivot(index="architecture", columns="attention")["Set5_psnr"]
    gains = scores["IKM"] - scores["none"]
    figure, axis = _axes(1, 9, 4.6)
    axis.axvspan(gains.min(), gains.max(), color="0.85",
                 label=f"IKM's gains in Table III,\n{gains.min():.2f} to {gains.max():.2f} dB")
    for sign, marker, colour, label in ((1, "^", BLUE, "raises the score"), (-1, "v", ORANGE, "lowers the score")):
        chosen = np.flatnonzero(np.sign(psnr["size"]) == sign)
        axis.scatter(psnr["size"].abs().iloc[chosen], chosen, marker=marker, s=90, color=colour, label=label, zorder=3)
    for place, size in enumerate(psnr["size"]):
        axis.annotate(f"{size:+.3f}", (abs(size), place), xytext=(9, 0), textcoords="offset points", va="center",
                      fontsize=10)
    axis.set(xscale="log", xlabel="change of PSNR, dB",
             yticks=range(len(psnr)), yticklabels=psnr.trap + ": " + psnr.what_goes_wrong)
    axis.margins(x=0.15)
    axis.grid(False, axis="y")
    axis.legend(loc="upper left")
    return figure


def figure_attention():
    """Attention in an untrained U-HDB: its values by kind of input channel, and the informative share by layer."""
    layers, arch = {strict: network_attention(strict) for strict in (False, True)}, ARCHITECTURES["uhdb"]
    figure, (left, right) = _axes(2, 10, 4.3)
    kinds = (("signed channels", False, slice(arch.channels), "0.35", "-"),
             (r"after ReLU, $x \geq 0$", False, slice(arch.channels, None), ORANGE, "-"),
             (r"after ReLU, $x > 0$", True, slice(arch.channels, None), BLUE, "--"))
    for label, strict, channels, colour, style in kinds:
        values = torch.cat([a[channels].flatten() for a in layers[strict]]).numpy()
        left.hist(values, np.linspace(*attention_range(), 44), weights=np.full(len(values), 100 / len(values)),
                  histtype="step", linewidth=2, color=colour, linestyle=style, label=label)
    left.set(yscale="log", ylim=(0.01, 300), xlim=attention_range(), xlabel="attention (the axis is its whole range)",
             ylabel="% of the values")
    left.legend(loc="upper right", fontsize=10)
    for strict, colour, marker, label in ((False, ORANGE, "o", r"$x \geq 0$ (released)"), (True, BLUE, "s", "$x > 0$")):
        share = [100 * informative(a).double().mean().item() for a in layers[strict]]
        right.plot(range(len(share)), share, marker=marker, color=colour, label=label)
    right.set(ylim=(0, 104), ylabel="input channels with information, %",
              xlabel="the modulated convolutions of units $F_1$ to $F_6$",
              xticks=np.cumsum((0, *arch.depths[:-1])), xticklabels=[f"$F_{u + 1}$" for u in range(len(arch.depths))])
    right.legend(loc="lower left")
    return figure
