"""What every part of the study trains, and the plan: which of it, with how many seeds, in which order.

A part's networks are its variants: a label, as its table prints it, -> the run with seed 0. PLAN says for which
profiles and seeds they are trained. Parts share runs: U-HDB with IKM at x2 is trained once and serves many of them.
"""
from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np
import pandas as pd
import torch

from ikmlib import config
from ikmlib.config import PROFILES, Profile
from ikmlib.models import ARCHITECTURES, Architecture, SRNetwork, cost
from ikmlib.study import recipe, records, weights
from ikmlib.study.records import Run, found
from ikmlib.study.test_time import test_time_scores
from ikmlib.trainers import TrainingDiverged

Labelled = dict[str, Run]          # label -> the run with seed 0
Variants = dict[str, list[Run]]    # label -> its runs, one a seed

UHDN, UHDB = ARCHITECTURES["uhdn"], ARCHITECTURES["uhdb"]
NAMES = {"rb": "RB", "db": "DB", "rdb": "RDB", "uhdb": "U-HDB", "none": "none", "ca": "CA", "sa": "SA", "ikm": "IKM"}


def _at_budget(profile: Profile, architectures: Mapping[str, Architecture], scale: int = 2) -> Labelled:
    """Runs of labelled architectures at a profile's budget."""
    return {label: Run.of(profile, arch, 0, scale) for label, arch in architectures.items()}


def ablated(profile: Profile) -> Architecture:
    """U-HDN as the profile's ablations train it: N = 4 blocks as in the paper, or fewer."""
    return replace(UHDN, blocks=profile.blocks)


# --- the parts ------------------------------------------------------------------------------------------------------


TABLE3_BLOCKS = ("rb", "db", "rdb", "uhdb")


def table3(profile: Profile) -> Labelled:
    """The 4 x 4 grid of Table III: "U-HDB none", "U-HDB IKM", ...; vanilla and IKM first."""
    return _at_budget(profile, {
        f"{NAMES[block]} {NAMES[attention]}": replace(ARCHITECTURES[block], attention=attention)
        for attention in ("none", "ikm", "ca", "sa") for block in reversed(TABLE3_BLOCKS)})


def _gain(profile: Profile) -> Labelled:
    """Table III's vanilla and IKM columns."""
    return {label: run for label, run in table3(profile).items() if label.endswith((" none", " IKM"))}


def quarter(profile: Profile) -> Labelled:
    """Table III's vanilla and IKM columns at a quarter of the updates: the lowest rung of the ladder of budgets."""
    return {label: replace(run, updates=profile.updates // 4) for label, run in _gain(profile).items()}


RATE_FACTORS = (0.5, 2.0)


def rates(profile: Profile) -> Labelled:
    """Table III's vanilla and IKM columns at half and at twice the rate: "U-HDB IKM, rate x 0.5", ..."""
    return {f"{label}, rate x {factor:g}": replace(run, rate=factor * profile.rate)
            for factor in RATE_FACTORS for label, run in _gain(profile).items()}


def again(profile: Profile) -> Labelled:
    """U-HDB without and with IKM, trained a second time with the images of every batch in reverse order: the same
    mathematics in another order of summation."""
    return {label: replace(run, reverse=True) for label, run in _gain(profile).items() if label.startswith("U-HDB")}


CONTROLS: dict[str, dict] = {
    "none": {"attention": "none"}, "IKM": {},
    "constant 1.5": {"context": "constant"}, "shuffled": {"context": "shuffled"},
    "strict": {"strict": True}, "softmax": {"transform": "softmax"}, "residual": {"transform": "residual"},
    "autograd": {"gradient": "autograd"}, "GO": {"gradient": "go"},
    "none, weights x 1.5": {"attention": "none", "gain": 1.5},
}
RB_CONTROLS = ("none", "IKM", "constant 1.5", "shuffled")   # in RB no more than these


def controls(profile: Profile) -> Labelled:
    """What could explain IKM's gain without its explanation, on U-HDB and RB: "U-HDB shuffled", ...; see CONTROLS."""
    return _at_budget(profile, {f"{NAMES[block]} {label}": replace(ARCHITECTURES[block], **changes)
                                for block in ("uhdb", "rb") for label, changes in CONTROLS.items()
                                if block == "uhdb" or label in RB_CONTROLS})


FIG10_RULES = {"IsO": "iso", "GO": "go", "autograd": "autograd"}
FIG10_BUDGETS = ("equal updates", "equal patches")


def fig10_batches(profile: Profile) -> tuple[int, int, int]:
    """A quarter of the middle batch, the middle one, at least 4, and four times it."""
    middle = max(4, profile.batch)
    return middle // 4, middle, middle * 4


def fig10_setting(profile: Profile, batch: int, budget: str) -> str:
    """"batch 16, equal patches"; at the middle batch the budgets are one: "batch 4"."""
    return f"batch {batch}" + (f", {budget}" if batch != fig10_batches(profile)[1] else "")


def fig10(profile: Profile) -> Labelled:
    """U-HDB under the gradient rules and batch sizes. The middle batch is shown as many patches as the profile shows;
    the others as many updates as that takes, or as many patches. Autograd at the middle batch only."""
    runs, patches, middle = {}, profile.updates * profile.batch, fig10_batches(profile)[1]
    for batch in sorted(fig10_batches(profile), key=lambda b: b != middle):   # the middle one first
        for budget in FIG10_BUDGETS:
            updates = patches // (middle if budget == "equal updates" else batch)
            for rule, gradient in FIG10_RULES.items():
                if rule != "autograd" or batch == middle:
                    run = Run.of(profile, replace(UHDB, gradient=gradient), 0)
                    label = f"{rule}, {fig10_setting(profile, batch, budget)}"
                    runs[label] = replace(run, batch=batch, updates=updates)
    return runs


def table5(profile: Profile) -> Labelled:
    """U-style residual learning x hourglass depths; without the U it is a chain of dense units."""
    both, flat = ablated(profile), (5,) * len(UHDN.depths)
    return _at_budget(profile, {
        "U-style + hourglass": both, "hourglass": replace(both, block="db"),
        "U-style": replace(both, depths=flat), "neither": replace(both, block="db", depths=flat)})


TABLE4_FIELDS = {(3, 1): 3, (3, 2): 5, (5, 1): 5, (3, 3): 7, (5, 2): 9}   # (k, dilation) -> R = (k - 1) dilation + 1


def table4(profile: Profile) -> Labelled:
    """Kernel size x dilation, with and without IKM: "k=5 D=2 IKM", "k=5 D=2 none"."""
    return _at_budget(profile, {
        f"k={kernel} D={dilation} {NAMES[attention]}":
            replace(ablated(profile), kernel=kernel, dilation=dilation, attention=attention)
        for kernel, dilation in ((3, 1), (5, 2), (5, 1), (3, 3), (3, 2)) for attention in ("ikm", "none")})


FIG9_THRESHOLDS: tuple[float | str, ...] = (0.0, "median", "mean", 0.1, -0.1, 0.5, -0.5)


def fig9(profile: Profile) -> Labelled:
    """Thresholds of the principal information: numbers, and the mean or median of each channel of each image."""
    return _at_budget(profile, {f"tau = {tau}": replace(ablated(profile), tau=tau) for tau in FIG9_THRESHOLDS})


def fig11(profile: Profile) -> Labelled:
    """U-HDN and three other orders of about the same depths."""
    depths = {"U-HDN": UHDN.depths, "V1": (4, 5, 6, 6, 5, 4), "V2": (4, 4, 4, 5, 6, 7), "V3": (7, 6, 5, 4, 4, 4)}
    return _at_budget(profile, {label: replace(ablated(profile), depths=d) for label, d in depths.items()})


def fig8_sizes(profile: Profile) -> dict[str, dict[str, Architecture]]:
    """The sweeps of Fig. 8, each alone around the profile's network: N blocks, U dense units, C channels."""
    base = ablated(profile)
    return {
        "N": {f"N={n}": replace(base, blocks=n) for n in ((1, 2, 4, 8) if base.blocks > 1 else (1, 2, 4))},
        "U": {f"U={len(d)}": replace(base, depths=d) for d in ((6, 6), (6, 5, 5, 6), UHDN.depths)},
        "C": {f"C={c}": replace(base, channels=c) for c in (32, 64, 96)},
    }


def fig8(profile: Profile) -> Labelled:
    """Model size: all networks of `fig8_sizes`."""
    return _at_budget(profile, {label: arch for sweep in fig8_sizes(profile).values() for label, arch in sweep.items()})


def table1(profile: Profile) -> Labelled:
    """U-HDN with IKM at every scale, "x2", "x4", "x3", each from its own random initialisation."""
    return {f"x{scale}": _final(profile, Run.of(profile, UHDN, 0, scale)) for scale in (2, 4, 3)}


def table2(profile: Profile) -> Labelled:
    """The large network beside the lightweight one, x2."""
    return {label: _final(profile, run) for label, run in _at_budget(
        profile, {"U-HDN+IKM": UHDN, "U-HDNL+IKM": ARCHITECTURES["uhdn_l"]}).items()}


def _final(profile: Profile, run: Run) -> Run:
    """A run of the final models of Tables I and II, which the paper trains longer than its ablations."""
    return replace(run, updates=profile.final_updates or profile.updates)


def fig5(profile: Profile) -> Labelled:
    """The network of Table III whose attention maps Figs. 5 and 6 are told with."""
    return {"U-HDB IKM": table3(profile)["U-HDB IKM"]}


# Part -> the notebook that shows it, and its variants.
PARTS: dict[str, tuple[str, Callable[[Profile], Labelled]]] = {
    "table3": ("04_table3_attention", table3), "controls": ("12_controls", controls),
    "quarter": ("04_table3_attention", quarter), "table5": ("06_table5_ablation", table5),
    "fig10": ("09_fig10_iso_vs_go", fig10), "table4": ("05_table4_receptive_field", table4),
    "fig9": ("08_fig9_threshold", fig9), "fig11": ("10_fig11_hourglass", fig11),
    "rates": ("04_table3_attention", rates), "again": ("99_report", again), "table1": ("02_table1_lightweight", table1),
    "table2": ("03_table2_high_fidelity", table2), "fig8": ("07_fig8_model_size", fig8),
    "fig5": ("11_fig5_6_attention_maps", fig5),
}
NOTEBOOKS = tuple(dict.fromkeys(notebook for notebook, _ in PARTS.values()))


# --- the plan -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A line of the plan: those of a part's variants whose labels match one of the patterns are trained with these
    seeds."""

    stage: str
    profile: str
    part: str
    seeds: tuple[int, ...]
    only: tuple[str, ...] = ("*",)

    @property
    def notebook(self) -> str:
        return PARTS[self.part][0]

    def variants(self) -> Labelled:
        """The part's variants that this line is about."""
        return {label: run for label, run in PARTS[self.part][1](PROFILES[self.profile]).items()
                if any(fnmatchcase(label, pattern) for pattern in self.only)}

    def runs(self, seed: int) -> list[Run]:
        """The line's runs of one seed; none if it is not the line's."""
        return [replace(run, seed=seed) for run in self.variants().values()] if seed in self.seeds else []


THREE, MORE, ONE = (0, 1, 2), (3, 4), (0,)
GAIN, SCALE_OR_CONTEXT = ("* none", "* IKM"), ("U-HDB constant 1.5", "U-HDB shuffled")
# Stages A to E in order of priority; of a stage all lines' first seed first, then the next. Declared before the runs.
PLAN = (
    Row("A", "cpu", "table3", THREE), Row("A", "cpu", "controls", THREE), Row("A", "cpu", "quarter", THREE),
    Row("A", "cpu", "table5", THREE), Row("A", "cpu", "fig10", THREE), Row("A", "cpu", "table4", THREE),
    Row("A", "cpu", "fig9", THREE), Row("A", "cpu", "fig11", THREE), Row("A", "cpu", "fig5", THREE),
    Row("A", "cpu", "rates", ONE), Row("A", "cpu", "again", ONE),
    Row("B", "cpu-long", "table3", THREE, GAIN), Row("B", "cpu-long", "controls", THREE, (*GAIN, *SCALE_OR_CONTEXT)),
    Row("B", "cpu-long", "table1", ONE, ("x2",)), Row("B", "cpu-long", "table2", ONE, ("U-HDN+IKM",)),
    Row("C", "cpu", "fig8", THREE),
    Row("D", "cpu", "table3", MORE, GAIN),
    Row("D", "cpu", "controls", MORE, ("U-HDB none", "U-HDB IKM", *SCALE_OR_CONTEXT)),
    Row("D", "cpu-long", "table3", MORE, GAIN),
    Row("D", "cpu-long", "controls", MORE, ("U-HDB none", "U-HDB IKM", *SCALE_OR_CONTEXT)),
    Row("D", "cpu-long", "table1", ONE, ("x4", "x3")),
    Row("E", "cpu-long", "table5", THREE), Row("E", "cpu-long", "fig11", THREE),
    *(Row("smoke", "smoke", part, ONE) for part in PARTS),
    *(Row(name, name, part, THREE) for name in ("small", "paper") for part in PARTS),
)


def planned(profile: Profile, part: str) -> Variants:
    """The declared runs of a part at a profile: label -> runs, one a seed (see `records.found`); maybe none."""
    seeds: dict[str, list[int]] = {label: [] for label in PARTS[part][1](profile)}
    for row in PLAN:
        if (row.profile, row.part) == (profile.name, part):
            for label in row.variants():
                seeds[label] += [seed for seed in row.seeds if seed not in seeds[label]]
    return {label: [found(replace(run, seed=seed)) for seed in seeds[label]]
            for label, run in PARTS[part][1](profile).items()}


def recorded(notebook: str) -> Profile:
    """The largest profile at which all declared runs of a notebook are finished; where there is none, the one with the
    largest share of them. Of a notebook without runs: the largest at which it was executed, else `cpu`."""
    parts = [part for part, (shown_in, _) in PARTS.items() if shown_in == notebook]

    def share(profile: Profile) -> float:
        if not parts:
            return float((config.results_root() / profile.name / "pages" / f"{notebook}.json").exists())
        runs = [run for part in parts for runs in planned(profile, part).values() for run in runs]
        return sum(run.finished for run in runs) / max(len(runs), 1)

    evidence = [profile for profile in reversed(PROFILES.values()) if profile.evidence]
    best = max(evidence, key=share)   # of equal ones the first, which is the largest
    return best if share(best) else PROFILES["cpu"]


def complete(variants: Variants) -> Variants:
    """The same with an empty list for every variant of whose runs some are not finished."""
    return {label: runs if all(run.finished for run in runs) else [] for label, runs in variants.items()}


def _rows(profile: Profile | None, only: Iterable[str]) -> list[Row]:
    """Lines of the plan for a profile (None: for the stages A to E) and notebooks, all if none is named. Unknown ones:
    ValueError."""
    meant = {wanted: {name for name in NOTEBOOKS if wanted in (name, name[:2])} for wanted in only}
    if unknown := [wanted for wanted, names in meant.items() if not names]:
        raise ValueError(f"no runs are known for {', '.join(unknown)}; allowed: {', '.join(NOTEBOOKS)}")
    chosen = set().union(*meant.values()) if meant else NOTEBOOKS
    return [row for row in PLAN if row.notebook in chosen
            and (row.profile == profile.name if profile else len(row.stage) == 1)]


def queue(profile: Profile | None, only: Iterable[str] = ()) -> list[Run]:
    """Runs of the plan in its order, each once: stage by stage, seed by seed, line by line. `profile` None: of all
    stages A to E; `only`: see `_rows`."""
    if profile == PROFILES["recipe"]:
        return [run for step in recipe.steps() for run in recipe.runs(*step) if not run.diverged]
    rows = _rows(profile, only)
    return list(dict.fromkeys(
        found(run) for stage in dict.fromkeys(row.stage for row in rows)
        for seed in range(5) for row in rows if row.stage == stage for run in row.runs(seed)))


# --- training it ----------------------------------------------------------------------------------------------------


def keep(run: Run) -> None:
    """What later notebooks need of a finished run whose weights are at hand: test-time controls of U-HDB and RB with
    IKM; and exported weights of what notebook 11 reads and of U-HDB without and with IKM at `cpu-long`."""
    profile = PROFILES[run.profile]
    if not profile.evidence or run != Run.of(profile, run.arch, run.seed) or not (run.folder / "weights.pt").exists():
        return
    with records.lock(run) as mine:
        if not mine or not run.finished:
            return
        if run.arch in (UHDB, ARCHITECTURES["rb"]):
            test_time_scores(run)
        if run in planned(profile, "fig5")["U-HDB IKM"] or (
                profile.name == "cpu-long" and run.arch in (UHDB, replace(UHDB, attention="none"))):
            weights.export(run.folder)


def ensure(wanted: Variants, *, train_missing: bool = True) -> Variants:
    """The finished runs of each variant, after training what is missing (unless told not to).

    A run that diverges is warned about and left out.
    """
    done = set()
    for run in dict.fromkeys(sum(wanted.values(), [])):
        try:
            if run.finished or train_missing and records.train(run):
                keep(run)
                done.add(run)
        except TrainingDiverged as error:
            warnings.warn(str(error), stacklevel=2)
    return {label: [run for run in runs if run in done] for label, runs in wanted.items()}


def work(profile: Profile | None, *, only: Iterable[str] = (), time_limit: float | None = None,
         show: bool = True) -> int:
    """Train the queue's unfinished runs in order, until done or `time_limit` seconds have passed; number of diverged.

    Several processes may work at once: each takes the first run that no other has.
    """
    deadline = None if time_limit is None else time.monotonic() + time_limit
    diverged = 0
    for run in queue(profile, only):
        if deadline is not None and time.monotonic() >= deadline:
            break
        try:
            if records.train(run, deadline=deadline, show=show):
                keep(run)
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
    device, batch, patch = records.default_device(), 8, 24
    model, x = SRNetwork(UHDB, 2).to(device), torch.rand(batch, 3, patch, patch, device=device)
    model(x).mean().backward()   # not timed: the first pass sets things up
    start = time.monotonic()
    for _ in range(3):
        model(x).mean().backward()
    model(x).sum().item()   # waits for the device
    return (time.monotonic() - start) / 3 / (cost(UHDB, 2)[1] * 4 * batch * patch ** 2)


def _pace(names: Iterable[str]) -> float:
    """Seconds for a unit of work: the median of the profiles' runs that were finished on this kind of device, whatever
    else it did meanwhile; where there are none, measured now."""
    device, paces = records.device_name(records.default_device()).split(",")[0], []
    for name in names:
        for row in records.all_records(PROFILES[name]).itertuples():
            if row.device.startswith(device):
                run = Run.from_record(records.read_record(config.results_root() / name / "runs" / row.id))
                paces.append(row.train_seconds / _work_of(run))
    return float(np.median(paces)) if paces else _measured_pace()


def status(profile: Profile | None = None) -> pd.DataFrame:
    """The plan, a row a line: stage, profile, notebook, part, N (blocks), seeds, runs, finished, hours_left.

    A run that several lines share counts in the first of them. Hours left are an estimate for one run at a time: a run
    in progress keeps its pace, a missing one takes as long for its multiply-adds as finished ones did (`_pace`).
    `profile` None: the stages A to E.
    """
    rows, seen, lines = [], set(), _rows(profile, ())
    pace = _pace(dict.fromkeys(row.profile for row in lines))
    for row in lines:
        runs = [run for seed in row.seeds for run in map(found, row.runs(seed)) if run not in seen]
        seen.update(runs)
        rows.append((row.stage, row.profile, row.notebook, row.part,
                     "-".join(map(str, sorted({run.arch.blocks for run in row.variants().values()}))),
                     " ".join(map(str, row.seeds)), len(runs), sum(run.finished for run in runs),
                     sum(_seconds_left(run, pace) for run in runs) / 3600))
    return pd.DataFrame(rows, columns=["stage", "profile", "notebook", "part", "N", "seeds", "runs", "finished",
                                       "hours_left"])


def _seconds_left(run: Run, pace: float) -> float:
    state, updates, seconds = records.state(run)
    if state == "in progress" and updates:
        return seconds * (run.updates - updates) / updates
    return 0.0 if state in ("finished", "diverged") else _work_of(run) * pace
