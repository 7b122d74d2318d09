"""What every artefact of the paper trains, and the queue: all of it, in the order in which the evidence is wanted.

An artefact's networks are its variants: a label, as its table prints it, -> that network's runs, one a seed. Artefacts
share runs: U-HDN with IKM at x2 is trained once and serves six of them.
"""
from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from . import recipe, study
from .config import PROFILES, Profile
from .models import ARCHITECTURES, Architecture, SRNetwork, cost
from .study import Run, found
from .trainers import TrainingDiverged

Variants = dict[str, list[Run]]

UHDN, UHDB = ARCHITECTURES["uhdn"], ARCHITECTURES["uhdb"]
NAMES = {"rb": "RB", "db": "DB", "rdb": "RDB", "uhdb": "U-HDB", "none": "none", "ca": "CA", "sa": "SA", "ikm": "IKM"}


def variants(profile: Profile, architectures: Mapping[str, Architecture], scale: int = 2) -> Variants:
    """Runs of labelled architectures at a profile's budget, for each of its seeds."""
    return {label: [Run.of(profile, arch, seed, scale) for seed in profile.seeds]
            for label, arch in architectures.items()}


# --- the artefacts --------------------------------------------------------------------------------------------------


TABLE3_BLOCKS = ("rb", "db", "rdb", "uhdb")
TABLE3_ATTENTIONS = ("none", "ca", "sa", "ikm")


def table3(profile: Profile) -> Variants:
    """The 4 x 4 grid of Table III: "U-HDB none", "U-HDB IKM", ...; vanilla and IKM first."""
    return variants(profile, {
        f"{NAMES[block]} {NAMES[attention]}": replace(ARCHITECTURES[block], attention=attention)
        for attention in ("none", "ikm", "ca", "sa") for block in reversed(TABLE3_BLOCKS)})


CONTROLS: dict[str, dict] = {
    "none": {"attention": "none"}, "IKM": {},
    "constant 1.5": {"context": "constant"}, "shuffled": {"context": "shuffled"},
    "strict": {"strict": True}, "softmax": {"transform": "softmax"}, "residual": {"transform": "residual"},
    "autograd": {"gradient": "autograd"}, "GO": {"gradient": "go"},
    "none, weights x 1.5": {"attention": "none", "gain": 1.5},
}


def controls(profile: Profile) -> Variants:
    """What could explain IKM's gain without its explanation, on U-HDB and RB: "U-HDB shuffled", ...; see CONTROLS."""
    return variants(profile, {f"{NAMES[block]} {label}": replace(ARCHITECTURES[block], **changes)
                              for block in ("uhdb", "rb") for label, changes in CONTROLS.items()})


FIG10_BATCHES = (8, 32, 1, 16, 4, 2)   # the first two decide most
FIG10_RULES = {"IsO": "iso", "GO": "go", "autograd": "autograd"}


def fig10(profile: Profile) -> Variants:
    """U-HDB under three gradient rules and six batch sizes: "GO, batch 32, equal updates" and "..., equal patches".

    Equal updates: the profile's number of them. Equal patches: its updates times its batch size, in whole updates.
    """
    found = {}
    for batch in FIG10_BATCHES:
        for rule, gradient in FIG10_RULES.items():
            runs = [replace(run, batch=batch) for run in variants(profile, {"": replace(UHDB, gradient=gradient)})[""]]
            found[f"{rule}, batch {batch}, equal updates"] = runs
            updates = max(1, round(profile.updates * profile.batch / batch))
            found[f"{rule}, batch {batch}, equal patches"] = [replace(run, updates=updates) for run in runs]
    return found


def table5(profile: Profile) -> Variants:
    """U-style residual learning x hourglass depths; without the U it is a chain of dense units."""
    flat = (5,) * len(UHDN.depths)
    return variants(profile, {
        "U-style + hourglass": UHDN, "hourglass": replace(UHDN, block="db"),
        "U-style": replace(UHDN, depths=flat), "neither": replace(UHDN, block="db", depths=flat)})


TABLE4_FIELDS = {(3, 1): 3, (3, 2): 5, (5, 1): 5, (3, 3): 7, (5, 2): 9}   # (k, dilation) -> R = (k - 1) dilation + 1


def table4(profile: Profile) -> Variants:
    """Kernel size x dilation, with and without IKM: "k=5 D=2 IKM", "k=5 D=2 none"."""
    return variants(profile, {
        f"k={kernel} D={dilation} {NAMES[attention]}":
            replace(UHDN, kernel=kernel, dilation=dilation, attention=attention)
        for kernel, dilation in ((3, 1), (5, 2), (5, 1), (3, 3), (3, 2)) for attention in ("ikm", "none")})


FIG9_THRESHOLDS: tuple[float | str, ...] = (0.0, "median", "mean", 0.1, -0.1, 0.5, -0.5)


def fig9(profile: Profile) -> Variants:
    """Thresholds of the principal information: numbers, and the mean or median of each channel of each image."""
    return variants(profile, {f"tau = {tau}": replace(UHDN, tau=tau) for tau in FIG9_THRESHOLDS})


def fig11(profile: Profile) -> Variants:
    """U-HDN and three other orders of about the same depths."""
    depths = {"U-HDN": UHDN.depths, "V1": (4, 5, 6, 6, 5, 4), "V2": (4, 4, 4, 5, 6, 7), "V3": (7, 6, 5, 4, 4, 4)}
    return variants(profile, {label: replace(UHDN, depths=d) for label, d in depths.items()})


def table1(profile: Profile) -> Variants:
    """U-HDN with IKM at every scale, "x2", "x4", "x3", each from its own random initialisation."""
    return {f"x{scale}": _final(profile, variants(profile, {"": UHDN}, scale)[""]) for scale in (2, 4, 3)}


FIG8_SIZES = {
    "N": {f"N={n}": replace(UHDN, blocks=n) for n in (1, 2, 4, 8)},
    "U": {f"U={len(d)}": replace(UHDN, depths=d) for d in ((6, 6), (6, 5, 5, 6), UHDN.depths)},
    "C": {f"C={c}": replace(UHDN, channels=c) for c in (32, 64, 96)},
}


def fig8(profile: Profile) -> Variants:
    """Model size: number of blocks N, of dense units U, of channels C, each alone around U-HDN."""
    return variants(profile, {label: arch for sweep in FIG8_SIZES.values() for label, arch in sweep.items()})


def table2(profile: Profile) -> Variants:
    """The large network beside the lightweight one, x2."""
    return {label: _final(profile, runs) for label, runs in variants(
        profile, {"U-HDN+IKM": UHDN, "U-HDNL+IKM": ARCHITECTURES["uhdn_l"]}).items()}


def _final(profile: Profile, runs: list[Run]) -> list[Run]:
    """Runs of the final models of Tables I and II, which the paper trains longer than its ablations."""
    return [replace(run, updates=profile.final_updates or profile.updates) for run in runs]


def fig5(profile: Profile) -> Variants:
    """The network of Table III whose attention maps Figs. 5 and 6 are told with."""
    return {"U-HDB IKM": table3(profile)["U-HDB IKM"]}


# Notebook -> its variants, in order of priority.
QUEUE: dict[str, Callable[[Profile], Variants]] = {
    "04_table3_attention": table3, "12_controls": controls, "09_fig10_iso_vs_go": fig10, "06_table5_ablation": table5,
    "05_table4_receptive_field": table4, "08_fig9_threshold": fig9, "10_fig11_hourglass": fig11,
    "02_table1_lightweight": table1, "07_fig8_model_size": fig8, "03_table2_high_fidelity": table2,
    "11_fig5_6_attention_maps": fig5,
}


# --- the queue ------------------------------------------------------------------------------------------------------


def in_order(wanted: Variants) -> list[Run]:
    """The runs, each once: first all of the first seed, so that a whole artefact is complete early."""
    seeds = dict.fromkeys(run.seed for runs in wanted.values() for run in runs)
    return list(dict.fromkeys(found(run) for seed in seeds for runs in wanted.values() for run in runs
                              if run.seed == seed))


def queue(profile: Profile, only: Iterable[str] = ()) -> list[Run]:
    """Runs of the chosen artefacts (all, if none is named) in priority order, each once. Unknown ones: ValueError."""
    meant = {wanted: {name for name in QUEUE if wanted in (name, name[:2])} for wanted in only}
    if unknown := [wanted for wanted, names in meant.items() if not names]:
        raise ValueError(f"no runs are known for {', '.join(unknown)}; allowed: {', '.join(QUEUE)}")
    if profile == PROFILES["recipe"]:
        return recipe.wanted()
    chosen = set().union(*meant.values()) if meant else QUEUE
    return list(dict.fromkeys(run for name in QUEUE if name in chosen for run in in_order(QUEUE[name](profile))))


def ensure(wanted: Variants, *, train_missing: bool = True) -> Variants:
    """The finished runs of each variant, after training what is missing (unless told not to).

    A run that diverges is warned about and left out.
    """
    done = set()
    for run in in_order(wanted):
        try:
            if run.finished or train_missing and study.train(run):
                done.add(run)
        except TrainingDiverged as error:
            warnings.warn(str(error), stacklevel=2)
    return {label: [run for run in map(found, runs) if run in done] for label, runs in wanted.items()}


def work(profile: Profile, *, only: Iterable[str] = (), time_limit: float | None = None, show: bool = True) -> int:
    """Train the queue's unfinished runs in order, until done or `time_limit` seconds have passed; number of diverged.

    Several processes may work at once: each takes the first run that no other has.
    """
    deadline = None if time_limit is None else time.monotonic() + time_limit
    diverged = 0
    for run in queue(profile, only):
        if deadline is not None and time.monotonic() >= deadline:
            break
        try:
            study.train(run, deadline=deadline, show=show)
        except TrainingDiverged as error:
            print(error, flush=True)
            diverged += 1
    return diverged


# --- status ---------------------------------------------------------------------------------------------------------


def _work_of(run: Run) -> float:
    """What a run costs, in units that only compare runs: multiply-adds an LR pixel, times pixels seen."""
    return cost(run.arch, run.scale)[1] * run.scale ** 2 * run.updates * run.batch * run.patch ** 2


def _measured_pace() -> float:
    """Seconds for a unit of work on this device, from a few updates' worth of passes of U-HDB on random pixels."""
    device, batch, patch = study.default_device(), 8, 24
    model, x = SRNetwork(UHDB, 2).to(device), torch.rand(batch, 3, patch, patch, device=device)
    model(x).mean().backward()   # not timed: the first pass sets things up
    start = time.monotonic()
    for _ in range(3):
        model(x).mean().backward()
    model(x).sum().item()   # waits for the device
    return (time.monotonic() - start) / 3 / (cost(UHDB, 2)[1] * 4 * batch * patch ** 2)


def status(profile: Profile) -> pd.DataFrame:
    """The queue: artefact, run, state (finished | in progress | missing), updates done, seconds trained, hours left.

    Hours left are an estimate: a run in progress keeps its pace; a missing one takes as long for its multiply-adds as
    the profile's runs that were finished on this kind of device did, or as a few passes measured now. Runs trained at
    once share the machine: divide by how many there are.
    """
    rows = {}
    for artefact, wanted in QUEUE.items():
        for run in in_order(wanted(profile)):
            if run not in rows:
                rows[run] = artefact, run.id, *study.state(run)
    table = pd.DataFrame(rows.values(), columns=["artefact", "run", "state", "updates", "seconds"])
    records, device = study.all_records(profile), study.device_name(study.default_device()).split(",")[0]
    here = set(records[records.device.str.startswith(device)].id) if len(records) else set()
    paces = [row[4] / _work_of(run) for run, row in rows.items() if run.id in here]
    pace = float(np.median(paces)) if paces else _measured_pace()
    table["hours_left"] = [_seconds_left(run, *row[2:], pace) / 3600 for run, row in rows.items()]
    return table


def _seconds_left(run: Run, state: str, updates: int, seconds: float, pace: float) -> float:
    if state == "in progress" and updates:
        return seconds * (run.updates - updates) / updates
    return 0.0 if state == "finished" else _work_of(run) * pace
