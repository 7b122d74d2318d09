"""Controls that need no training of their own: other attention at test time, and the gradient rules side by side.

The trained controls are `experiments.controls`. All of them together are compared with the vanilla network.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from . import config, study
from .claims import seeds_in_words
from .config import Profile
from .data import crop_to_multiple, imresize, to_rgb, training_data
from .evidence import claim, differences, draw_intervals, scores, with_seeds
from .experiments import CONTROLS, UHDB, Variants
from .files import write_csv
from .layers import GRADIENTS, IKMConv2d, attending
from .metrics import psnr_y
from .models import SRNetwork
from .report import MIN_SEEDS, SMALLEST
from .study import Run
from .trainers import mae, super_resolve
from .weights import trained_network

BLOCKS = ("U-HDB", "RB")
TEST_TIME = {"frozen": "IKM, frozen at test", "swapped": "IKM, swapped at test"}
FROZEN_BATCHES = 32   # of the run's own training batches, over which attention is averaged
GRADIENT_UPDATES = (0, 10, 50, 100, 200)


# --- attention at test time -----------------------------------------------------------------------------------------


def _attention_of(model: SRNetwork, act: Callable[..., object], *args) -> dict[IKMConv2d, Tensor]:
    """Attention of each layer during act(*args), mean over images; without layers whose attention is just a number."""
    found: dict[IKMConv2d, Tensor] = {}

    def watch(layer, own):
        attention = own()
        if isinstance(attention, Tensor):
            found[layer] = attention.mean(0, keepdim=True)
        return attention

    with attending(model, watch), torch.no_grad():
        act(*args)
    return found


def _replaced(given: Mapping[IKMConv2d, Tensor]) -> Callable:
    return lambda layer, own: given[layer] if layer in given else own()


def training_mean(model: SRNetwork, run: Run) -> dict[IKMConv2d, Tensor]:
    """Attention of each layer, mean over FROZEN_BATCHES of the batches that the run was trained on."""
    device = next(model.parameters()).device
    sampler, _, _ = training_data(run.data, run.scale, run.patch, str(device))
    batches = [_attention_of(model, model, sampler.batch(run.seed, u, run.batch)[0])
               for u in range(min(FROZEN_BATCHES, run.updates))]
    return {layer: torch.stack([batch[layer] for batch in batches]).mean(0) for layer in batches[0]}


def test_time_scores(run: Run) -> pd.DataFrame | None:
    """Scores of a finished IKM run on its test images with attention that is not the image's own: set, image, frozen,
    swapped, psnr_y in dB.

    frozen   the mean attention of training batches, for every image
    swapped  that of the set's next image
    Measured once and kept in the run's folder as `controls.csv`; None if it is neither there nor the weights at hand.
    """
    path = run.folder / "controls.csv"
    if path.exists():
        return pd.read_csv(path, dtype={"image": str})
    model = trained_network(run)
    if model is None:
        return None
    frozen, rows = training_mean(model, run), []
    for set_name, images in study.test_images(config.get_profile(run.profile), run.data).items():
        hrs = {name: crop_to_multiple(to_rgb(image), run.scale) for name, image in images.items()}
        lrs = {name: imresize(hr, 1 / run.scale) for name, hr in hrs.items()}
        following = dict(zip(lrs, [*list(lrs)[1:], next(iter(lrs))], strict=True))
        for name, lr in tqdm(lrs.items(), f"other attention, {set_name}", leave=False, delay=2):
            swapped = _attention_of(model, super_resolve, model, lrs[following[name]])
            values = []
            for given in (frozen, swapped):
                with attending(model, _replaced(given)):
                    values.append(psnr_y(super_resolve(model, lr), hrs[name], shave=run.scale))
            rows.append((set_name, name, *values))
    write_csv(path, pd.DataFrame(rows, columns=["set", "image", *TEST_TIME]))
    return test_time_scores(run)


def all_scores(done: Variants) -> pd.DataFrame:
    """Scores of the trained controls, and of IKM with other attention at test time as further variants."""
    frames = [scores(done)]
    for block in BLOCKS:
        for run in done.get(f"{block} IKM", []):
            other = test_time_scores(run)
            for column, name in TEST_TIME.items() if other is not None else ():
                frames.append(other[["set", "image"]].assign(psnr_y=other[column], seed=run.seed,
                                                             variant=f"{block} {name}"))
    return pd.concat(frames, ignore_index=True)


# --- questions and verdicts -----------------------------------------------------------------------------------------


def questions(blocks: Sequence[str] = BLOCKS) -> dict[str, dict[str, float]]:
    """Every variant of each block against the block's vanilla network."""
    others = [name for name in [*CONTROLS, *TEST_TIME.values()] if name != "none"]
    return {f"{block} {name}": {f"{block} {name}": 1, f"{block} none": -1} for block in blocks for name in others}


def own_attention_questions(blocks: Sequence[str] = BLOCKS) -> dict[str, dict[str, float]]:
    """IKM against the same network whose attention is not, or not only, the image's own."""
    return {f"{block}: IKM − {name}": {f"{block} IKM": 1, f"{block} {name}": -1}
            for block in blocks for name in ("constant 1.5", "shuffled", *TEST_TIME.values())}


def verdicts(table: pd.DataFrame, own: pd.DataFrame, profile: Profile) -> dict[str, dict[str, str | int]]:
    """Two explanations of a gain, block by block. `table`: contrasts of `questions`; `own`: of
    `own_attention_questions`."""
    found = {}
    for block in BLOCKS:
        found[f"E1, own attention, {block}"] = claim(
            differences(own, list(own_attention_questions([block]))), profile,
            paper="the gain comes from image-specific attention (Sections I and III)",
            holds="Holds if IKM beats the same network trained with constant attention, trained with another image's "
                  "(tested with its own), and tested with frozen and swapped attention: whole 95 % intervals above 0.")
        found[f"E2, scale, {block}"] = claim(
            differences(table, [f"{block} constant 1.5", f"{block} none, weights x 1.5"]), profile,
            paper="not considered",
            holds="Holds if re-scaled weights alone beat vanilla: the whole 95 % intervals of constant 1.5 and of an "
                  "initialisation at 1.5 times, minus vanilla, lie above 0.")
    return found


def conclusion(own: pd.DataFrame) -> str:
    """In plain words, what each comparison of `own_attention_questions` says on these runs."""
    said = []
    for name, d in differences(own).items():
        if d is None:
            said.append(f"- {name}: not measured.")
            continue
        what = ("too few seeds to tell" if d.seeds < MIN_SEEDS else
                f"equal within {SMALLEST} dB" if -SMALLEST < d.low and d.high < SMALLEST else
                "the image's own attention is better" if d.low > 0 else
                "the image's own attention is worse" if d.high < 0 else "no difference can be told")
        said.append(f"- {name}: {d}, {seeds_in_words(d.seeds)}: {what}.")
    return "\n".join(said)


# --- gradients ------------------------------------------------------------------------------------------------------


def _gradients(model: SRNetwork, lr: Tensor, hr: Tensor) -> dict[str, Tensor]:
    """Gradient of all modulated kernels on one batch, flat, under each rule; the model is left as it was."""
    layers = [module for module in model.modules() if isinstance(module, IKMConv2d)]
    usual, found = [layer.gradient for layer in layers], {}
    for rule in GRADIENTS:
        for layer in layers:
            layer.gradient = rule
        loss = mae(model(lr), hr, model.std)
        gradients = torch.autograd.grad(loss, [layer.weight for layer in layers])
        found[rule] = torch.cat([g.flatten() for g in gradients]).double()   # 1 - cosine is near float32's rounding
    for layer, rule in zip(layers, usual, strict=True):
        layer.gradient = rule
    return found


def gradient_agreement(profile: Profile) -> pd.DataFrame:
    """The three rules on the same batch while U-HDB is trained by IsO: update, seed, rule, and cosine, angle (degrees)
    and norm_ratio to autograd's gradient.

    A short training of its own, at GRADIENT_UPDATES up to the profile's updates; the batch is the one that follows.
    """
    device, rows = study.default_device(), []
    for seed in profile.seeds:
        run = study.found(Run.of(profile, UHDB, seed))
        sampler, _, _ = training_data(run.data, run.scale, run.patch, str(device))
        model = run.build().to(device, memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(model.parameters(), lr=run.rate)
        last = max(u for u in GRADIENT_UPDATES if u <= run.updates)
        for update in tqdm(range(last + 1), f"gradients, seed {seed}", leave=False, delay=2):
            lr, hr = sampler.batch(seed, update, run.batch)
            if update in GRADIENT_UPDATES:
                found = _gradients(model, lr, hr)
                exact = found["autograd"]
                for rule, g in found.items():
                    if rule != "autograd":
                        cosine = float(torch.cosine_similarity(g, exact, dim=0))
                        rows.append((update, seed, rule, cosine, math.degrees(math.acos(min(cosine, 1.0))),
                                     float(g.norm() / exact.norm())))
            optimizer.zero_grad(set_to_none=True)
            mae(model(lr), hr, model.std).backward()
            optimizer.step()
    return pd.DataFrame(rows, columns=["update", "seed", "rule", "cosine", "angle_degrees", "norm_ratio"])


# --- figures --------------------------------------------------------------------------------------------------------


def figure_order(table: pd.DataFrame):
    """All variants in the order of their difference to vanilla, with intervals; colours: what is image-specific."""
    import matplotlib.pyplot as plt

    rows = table.dropna(subset="gain_db_ours").sort_values("gain_db_ours").reset_index(drop=True)
    kinds = {"image's own attention": "C0", "constant, another's or none": "C1"}
    foreign = rows.contrast.str.contains("constant|shuffled|frozen|swapped|none")
    figure, axes = plt.subplots(figsize=(9, 1.8 + 0.36 * len(rows)))
    for (label, colour), chosen in zip(kinds.items(), (rows[~foreign], rows[foreign]), strict=True):
        draw_intervals(axes, chosen.gain_db_ours, chosen.low_db, chosen.high_db, chosen.index, chosen.seeds,
                       colour, label)
    axes.axvline(0, color="0.3", lw=1)
    axes.set_yticks(range(len(rows)), with_seeds(rows))
    axes.grid(False, axis="y")
    axes.set(xlabel="PSNR difference to the vanilla network (dB), all test images")
    figure.legend(ncols=2, loc="outside lower center", fontsize=11)
    return figure


def figure_gradients(table: pd.DataFrame):
    """Angle and relative norm of IsO's and GO's gradients to autograd's along training; marks are seeds."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9, 4))
    for i, (rule, label) in enumerate((("iso", "IsO"), ("go", "GO"))):
        rows = table[table.rule == rule]
        x = np.array([GRADIENT_UPDATES.index(u) for u in rows["update"]]) + 0.08 * (2 * i - 1)
        panels[0].plot(x, rows.angle_degrees, "os"[i], label=label)
        panels[1].plot(x, rows.norm_ratio, "os"[i], label=label)
    labels = "angle to autograd's gradient (degrees)", "norm / norm of autograd's"
    for axes, label in zip(panels, labels, strict=True):
        axes.set(xlabel="updates", ylabel=label)
        axes.set_ylim(bottom=0)
        axes.set_xticks(range(len(GRADIENT_UPDATES)), GRADIENT_UPDATES)
    panels[0].legend(fontsize=11)
    return figure
