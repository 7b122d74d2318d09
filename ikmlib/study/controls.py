"""Controls: what the trained ones and those of test time say together, and the gradient rules side by side.

The trained controls are `experiments.controls`, those of test time `test_time`.
"""
from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from ikmlib.config import PROFILES, Profile
from ikmlib.data import training_data
from ikmlib.layers import GRADIENTS, IKMConv2d
from ikmlib.models import SRNetwork
from ikmlib.study import records
from ikmlib.study.claims import seeds_in_words
from ikmlib.study.comparisons import architecture_of, claim, contrasts, differences, draw_intervals, with_seeds
from ikmlib.study.experiments import CONTROLS, RB_CONTROLS, UHDB, Variants, planned
from ikmlib.study.experiments import controls as trained_controls
from ikmlib.study.records import Run
from ikmlib.study.stats import MIN_SEEDS, SMALLEST, Difference
from ikmlib.study.test_time import TEST_TIME, test_time_scores
from ikmlib.trainers import learning_rate, mae

BLOCKS = ("U-HDB", "RB")
GRADIENT_UPDATES = (0, 10, 50, 100, 200)


# --- records ---------------------------------------------------------------------------------------------------------


def at_test(wanted: Variants) -> pd.DataFrame:
    """Scores of IKM with other attention at test time, as variants "U-HDB IKM, frozen at test", ...: variant, seed,
    set, image, psnr_y. Of the finished runs that have them."""
    frames = [pd.DataFrame(columns=["variant", "seed", "set", "image", "psnr_y"])]
    for block in BLOCKS:
        for run in wanted.get(f"{block} IKM", []):
            other = test_time_scores(run) if run.finished else None
            for column, name in TEST_TIME.items() if other is not None else ():
                frames.append(other[["set", "image"]].assign(psnr_y=other[column], seed=run.seed,
                                                             variant=f"{block} {name}"))
    return pd.concat(frames, ignore_index=True) if len(frames) > 1 else frames[0]


# --- questions and verdicts -----------------------------------------------------------------------------------------


def _trained_in(block: str) -> tuple[str, ...]:
    return tuple(CONTROLS) if block == "U-HDB" else RB_CONTROLS


def questions(blocks: Sequence[str] = BLOCKS) -> dict[str, dict[str, float]]:
    """Every variant of each block against the block's vanilla network."""
    return {f"{block} {name}": {f"{block} {name}": 1, f"{block} none": -1} for block in blocks
            for name in (*_trained_in(block), *TEST_TIME.values()) if name != "none"}


def own_attention_questions(blocks: Sequence[str] = BLOCKS) -> dict[str, dict[str, float]]:
    """IKM against the same network whose attention is not, or not only, the image's own."""
    return {f"{block}: IKM − {name}": {f"{block} IKM": 1, f"{block} {name}": -1}
            for block in blocks for name in ("constant 1.5", "shuffled", *TEST_TIME.values())}


def answers(profile: Profile, asked: dict[str, dict[str, float]]) -> pd.DataFrame:
    """`comparisons.contrasts` of the controls; deviations over seeds are pooled within an architecture."""
    wanted = planned(profile, "controls")
    return contrasts(wanted, asked, family=architecture_of, at_test=at_test(wanted))


def first_recipe() -> pd.DataFrame:
    """The questions about the image's own attention as the first evidence answered them (profile `cpu-first`): a row a
    question, dB, without a verdict."""
    first = PROFILES["cpu-first"]
    wanted = {label: [run for seed in range(5) if (run := Run.of(first, named.arch, seed)).finished]
              for label, named in trained_controls(first).items()}
    table = contrasts(wanted, own_attention_questions(), at_test=at_test(wanted))
    return table[["contrast", "gain_db_ours", "low_db", "high_db", "images", "seeds"]]


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
            differences(table, [f"{block} {name}" for name in ("constant 1.5", "none, weights x 1.5")
                                if name in _trained_in(block)]), profile,
            paper="not considered",
            holds="Holds if re-scaled weights alone beat vanilla: the whole 95 % intervals of constant 1.5 and (U-HDB) "
                  "of an initialisation at 1.5 times, minus vanilla, lie above 0.")
    return found


def conclusion(own: pd.DataFrame) -> str:
    """In plain words, what each comparison of `own_attention_questions` says on these runs."""
    said = []
    for name, d in differences(own).items():
        if not isinstance(d, Difference):
            said.append(f"- {name}: {d}.")
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
    device, rows = records.default_device(), []
    for seed in profile.seeds:
        run = records.found(Run.of(profile, UHDB, seed))
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
            optimizer.param_groups[0]["lr"] = learning_rate(run.rate, update, run.updates, run.schedule)
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
