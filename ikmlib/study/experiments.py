"""What every part of the study trains, and the plan: which of it, with how many seeds, in which order.

A part is a table or figure of the paper, or a set of controls: a grid of cells. A cell, such as ("U-HDB", "IKM"), has a
value of each of the part's factors and stands for a run with seed 0. PLAN says at which profiles and with which seeds
cells are trained. Parts share runs: U-HDB with IKM at x2 is trained once and serves many of them.
"""
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import pandas as pd

from ikmlib.config import PROFILES, Profile
from ikmlib.models import ARCHITECTURES, Architecture
from ikmlib.study.records import Run

Cells = dict[tuple, Run]

UHDN, UHDB = ARCHITECTURES["uhdn"], ARCHITECTURES["uhdb"]
BLOCKS = {"U-HDB": "uhdb", "RDB": "rdb", "DB": "db", "RB": "rb"}
ATTENTIONS = {"none": "none", "IKM": "ikm", "CA": "ca", "SA": "sa"}


def _at_budget(profile: Profile, architectures: Mapping[tuple, Architecture]) -> Cells:
    """Runs of a grid of architectures at a profile's budget, x2."""
    return {cell: Run.of(profile, arch, 0) for cell, arch in architectures.items()}


def ablated(profile: Profile) -> Architecture:
    """U-HDN as the profile's ablations train it: N = 4 blocks as in the paper, or fewer."""
    return replace(UHDN, blocks=profile.blocks)


# --- the parts ------------------------------------------------------------------------------------------------------


def table3(profile: Profile) -> Cells:
    """Block x attention, the 4 x 4 grid of Table III; vanilla and IKM first."""
    return _at_budget(profile, {(block, attention): replace(ARCHITECTURES[BLOCKS[block]],
                                                            attention=ATTENTIONS[attention])
                                for attention in ATTENTIONS for block in BLOCKS})


def _gain(profile: Profile) -> Cells:
    """Table III's vanilla and IKM columns."""
    return {cell: run for cell, run in table3(profile).items() if cell[1] in ("none", "IKM")}


def quarter(profile: Profile) -> Cells:
    """Table III's vanilla and IKM columns at a quarter of the updates: the lowest rung of the ladder of budgets."""
    return {cell: replace(run, updates=profile.updates // 4) for cell, run in _gain(profile).items()}


RATE_FACTORS = (0.5, 2.0)


def rates(profile: Profile) -> Cells:
    """Table III's vanilla and IKM columns at half and at twice the rate."""
    return {(*cell, factor): replace(run, rate=factor * profile.rate)
            for factor in RATE_FACTORS for cell, run in _gain(profile).items()}


def half(profile: Profile) -> Cells:
    """U-HDB without and with IKM at half the rate: `rates` on new seeds."""
    return {(block, attention): run for (block, attention, factor), run in rates(profile).items()
            if (block, factor) == ("U-HDB", 0.5)}


def again(profile: Profile) -> Cells:
    """U-HDB without and with IKM, trained a second time with the images of every batch in reverse order: the same
    mathematics in another order of summation."""
    return {cell: replace(run, reverse=True) for cell, run in _gain(profile).items() if cell[0] == "U-HDB"}


CONTROLS: dict[str, dict] = {
    "none": {"attention": "none"}, "IKM": {},
    "constant 1.5": {"context": "constant"}, "shuffled": {"context": "shuffled"},
    "strict": {"strict": True}, "softmax": {"transform": "softmax"}, "residual": {"transform": "residual"},
    "autograd": {"gradient": "autograd"}, "GO": {"gradient": "go"},
    "none, weights x 1.5": {"attention": "none", "gain": 1.5},
    "softmax, strict": {"transform": "softmax", "strict": True},   # the strongest modulation around 1
}
FASTER = "none, rate x 1.5"   # the vanilla network, all its weights learning at 1.5 times the rate
RB_CONTROLS = ("none", "IKM", "constant 1.5", "shuffled")   # in RB no more than these


def controls(profile: Profile) -> Cells:
    """Block x control: what could explain IKM's gain without its explanation, in U-HDB and in RB."""
    cells = _at_budget(profile, {(block, control): replace(ARCHITECTURES[BLOCKS[block]], **CONTROLS[control])
                                 for block, names in (("U-HDB", CONTROLS), ("RB", RB_CONTROLS)) for control in names})
    return cells | {("U-HDB", FASTER): replace(cells["U-HDB", "none"], rate=1.5 * profile.rate)}


FIG10_RULES = {"IsO": "iso", "GO": "go", "autograd": "autograd"}
FIG10_BUDGETS = ("equal updates", "equal patches")


def fig10_batches(profile: Profile) -> tuple[int, int, int]:
    """A quarter of the middle batch, the middle one, at least 4, and four times it."""
    middle = max(4, profile.batch)
    return middle // 4, middle, middle * 4


def fig10(profile: Profile) -> Cells:
    """Gradient rule x batch x budget, in U-HDB. The middle batch is shown as many patches as the profile shows (its
    budget is "either"); the others as many updates as that takes, or as many patches. Autograd at the middle batch."""
    cells, patches, (small, middle, large) = {}, profile.updates * profile.batch, fig10_batches(profile)
    for batch, budget in ((middle, "either"), *((b, budget) for b in (small, large) for budget in FIG10_BUDGETS)):
        updates = patches // (middle if budget == "equal updates" else batch)
        for rule, gradient in FIG10_RULES.items():
            if rule != "autograd" or batch == middle:
                run = Run.of(profile, replace(UHDB, gradient=gradient), 0)
                cells[rule, batch, budget] = replace(run, batch=batch, updates=updates)
    return cells


def table5(profile: Profile) -> Cells:
    """U-style residual learning x hourglass depths; without the U it is a chain of dense units."""
    blocks, depths = {"yes": "uhdb", "no": "db"}, {"yes": UHDN.depths, "no": (5,) * len(UHDN.depths)}
    return _at_budget(profile, {
        (u_style, hourglass): replace(ablated(profile), block=blocks[u_style], depths=depths[hourglass])
        for u_style, hourglass in (("yes", "yes"), ("no", "yes"), ("yes", "no"), ("no", "no"))})


TABLE4_FIELDS = {(3, 1): 3, (3, 2): 5, (5, 1): 5, (3, 3): 7, (5, 2): 9}   # (k, dilation) -> R = (k - 1) dilation + 1


def table4(profile: Profile) -> Cells:
    """Kernel size x dilation x attention."""
    return _at_budget(profile, {
        (kernel, dilation, attention):
            replace(ablated(profile), kernel=kernel, dilation=dilation, attention=ATTENTIONS[attention])
        for kernel, dilation in ((3, 1), (5, 2), (5, 1), (3, 3), (3, 2)) for attention in ("IKM", "none")})


FIG9_THRESHOLDS: tuple[float | str, ...] = (0.0, "median", "mean", 0.1, -0.1, 0.5, -0.5)


def fig9(profile: Profile) -> Cells:
    """Thresholds of the principal information: numbers, and the mean or median of each channel of each image."""
    return _at_budget(profile, {(tau,): replace(ablated(profile), tau=tau) for tau in FIG9_THRESHOLDS})


def fig11(profile: Profile) -> Cells:
    """U-HDN and three other orders of about the same depths."""
    depths = {"U-HDN": UHDN.depths, "V1": (4, 5, 6, 6, 5, 4), "V2": (4, 4, 4, 5, 6, 7), "V3": (7, 6, 5, 4, 4, 4)}
    return _at_budget(profile, {(order,): replace(ablated(profile), depths=d) for order, d in depths.items()})


FIG8_DEPTHS = {2: (6, 6), 4: (6, 5, 5, 6), 6: UHDN.depths}   # U dense units -> their depths


def fig8(profile: Profile) -> Cells:
    """Model size, N blocks x U dense units x C channels: each varied alone around the profile's network."""
    n, u, c = profile.blocks, len(UHDN.depths), UHDN.channels
    sizes = [(blocks, u, c) for blocks in ((1, 2, 4, 8) if n > 1 else (1, 2, 4))]
    sizes += [(n, units, c) for units in FIG8_DEPTHS] + [(n, u, channels) for channels in (32, 64, 96)]
    return _at_budget(profile, {(blocks, units, channels): replace(UHDN, blocks=blocks, depths=FIG8_DEPTHS[units],
                                                                   channels=channels)
                                for blocks, units, channels in sizes})


def table1(profile: Profile) -> Cells:
    """U-HDN with IKM at every scale, each from its own random initialisation."""
    updates = profile.final_updates or profile.updates   # longer than ablations, as we read the paper
    return {(scale,): replace(Run.of(profile, UHDN, 0, scale), updates=updates) for scale in (2, 4, 3)}


def table2(profile: Profile) -> Cells:
    """The large network beside the lightweight one, x2."""
    small = table1(profile)[2,]
    return {("U-HDN+IKM",): small, ("U-HDNL+IKM",): replace(small, arch=ARCHITECTURES["uhdn_l"])}


RIVALS = ("SRCNN", "LapSRN", "IDN", "CARN", "IMDN")   # half of Table I's methods, from the oldest to a strong one


def rival(profile: Profile, name: str) -> Run:
    """A network of `peers.build_peer` at x2 and a profile's budget."""
    return replace(Run.of(profile, Architecture(), 0), peer=name)


def same_budget(profile: Profile) -> Cells:
    """Rivals of Table I and its U-HDN (N = 4 at every profile) without and with IKM, all trained alike, x2."""
    return {(name,): rival(profile, name.lower()) for name in RIVALS} | _at_budget(
        profile, {("U-HDN",): replace(UHDN, attention="none"), ("U-HDN+IKM",): UHDN})


def whole(profile: Profile) -> Cells:
    """The whole U-HDN of Table I (N = 4 at every profile) without and with IKM, x2."""
    return _at_budget(profile, {(attention,): replace(UHDN, attention=ATTENTIONS[attention])
                                for attention in ("none", "IKM")})


def fig5(profile: Profile) -> Cells:
    """The network of Table III that stands for the paper's in the notebook of Figs. 5 and 6."""
    return {("U-HDB", "IKM"): table3(profile)["U-HDB", "IKM"]}


@dataclass(frozen=True)
class Part:
    """A part of the study: the notebook that shows it, the names of its factors, and its cells at a profile."""

    notebook: str
    factors: tuple[str, ...]
    cells: Callable[[Profile], Cells]


_GRID = ("block", "attention")
PARTS = {
    "table3": Part("04_table3_attention", _GRID, table3),
    "controls": Part("12_controls", ("block", "control"), controls),
    "whole": Part("04_table3_attention", ("attention",), whole),
    "quarter": Part("04_table3_attention", _GRID, quarter),
    "table5": Part("06_table5_ablation", ("u_style", "hourglass"), table5),
    "fig10": Part("09_fig10_iso_vs_go", ("rule", "batch", "budget"), fig10),
    "table4": Part("05_table4_receptive_field", ("kernel", "dilation", "attention"), table4),
    "fig9": Part("08_fig9_threshold", ("tau",), fig9),
    "fig11": Part("10_fig11_hourglass", ("order",), fig11),
    "rates": Part("04_table3_attention", (*_GRID, "rate_factor"), rates),
    "half": Part("04_table3_attention", _GRID, half),
    "again": Part("99_report", _GRID, again),
    "table1": Part("02_table1_lightweight", ("scale",), table1),
    "table2": Part("03_table2_high_fidelity", ("network",), table2),
    "fig8": Part("07_fig8_model_size", ("N", "U", "C"), fig8),
    "fig5": Part("11_fig5_6_attention_maps", _GRID, fig5),
    "same_budget": Part("02_table1_lightweight", ("network",), same_budget),
}
NOTEBOOKS = tuple(dict.fromkeys(part.notebook for part in PARTS.values()))


# --- the plan -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A row of the plan: which cells of a part are trained, at which profile, with which seeds."""

    line: str
    profile: str
    part: str
    seeds: tuple[int, ...]
    only: dict[str, tuple] = field(default_factory=dict)   # factor -> its values; of a factor not named here, all

    @property
    def notebook(self) -> str:
        return PARTS[self.part].notebook

    def cells(self) -> Cells:
        """The part's cells that this row is about."""
        factors, cells = PARTS[self.part].factors, PARTS[self.part].cells(PROFILES[self.profile])
        return {cell: run for cell, run in cells.items()
                if all(cell[factors.index(name)] in values for name, values in self.only.items())}

    def runs(self, seed: int) -> list[Run]:
        """The row's runs, with this seed."""
        return [replace(run, seed=seed) for run in self.cells().values()]


ONE, THREE, MORE, FIVE = (0,), (0, 1, 2), (3, 4), (0, 1, 2, 3, 4)
_COLUMNS, _ADDED = {"attention": ("none", "IKM")}, (FASTER, "softmax, strict")
_UHDB, _GAIN, _SCALE_OR_CONTEXT = ("U-HDB",), ("none", "IKM"), ("constant 1.5", "shuffled")
# Lines a to h in order of priority. Within a line one part is finished after the other, and within a part all networks
# of one seed before those of the next. Declared before the runs: results/PLAN.md.
PLAN = (
    Row("a", "cpu", "table3", THREE), Row("a", "cpu", "table3", MORE, _COLUMNS), Row("a", "cpu", "fig5", THREE),
    Row("a", "cpu", "controls", THREE, {"control": tuple(name for name in CONTROLS if name not in _ADDED)}),
    Row("a", "cpu", "controls", MORE, {"block": _UHDB, "control": (*_GAIN, *_SCALE_OR_CONTEXT)}),
    Row("b", "cpu-long", "table3", tuple(range(5, 15)), {"block": _UHDB, **_COLUMNS}),
    Row("b", "cpu-long", "controls", tuple(range(5, 15)), {"block": _UHDB, "control": _GAIN}),   # the same runs
    Row("c", "cpu", "table5", THREE), Row("c", "cpu", "fig10", THREE, {"batch": (4, 16)}),
    Row("c", "cpu", "table4", THREE), Row("c", "cpu", "fig9", THREE), Row("c", "cpu", "fig11", THREE),
    Row("c", "cpu", "quarter", THREE), Row("c", "cpu", "again", ONE),
    Row("c", "cpu", "controls", FIVE, {"block": _UHDB, "control": _ADDED}), Row("c", "cpu", "fig8", THREE),
    Row("c", "cpu", "rates", ONE), Row("c", "cpu", "same_budget", THREE),
    Row("c", "cpu", "table1", ONE, {"scale": (2,)}),   # a run of same_budget
    Row("d", "cpu", "whole", (3, 4, 5, 6, 7)),
    Row("e", "cpu-long", "controls", (5, 6, 7, 8, 9), {"block": _UHDB, "control": _SCALE_OR_CONTEXT}),
    Row("f", "cpu-long", "table3", (5, 6, 7), {"block": ("RB", "DB", "RDB"), **_COLUMNS}),
    Row("g", "cpu-long", "table1", ONE, {"scale": (2,)}),
    Row("g", "cpu-long", "table2", ONE, {"network": ("U-HDN+IKM",)}),   # the same run
    Row("h", "cpu", "half", (5, 6, 7, 8, 9)),
    *(Row("smoke", "smoke", part, ONE, {"block": _UHDB} if part in ("quarter", "rates") else {}) for part in PARTS),
    *(Row(name, name, part, THREE) for name in ("small", "paper") for part in PARTS),
)


def planned(profile: Profile, part: str) -> pd.DataFrame:
    """The declared runs of a part at a profile, a row each: the part's factors, seed, run; cells as the part orders
    them."""
    rows = [(row.cells(), row.seeds) for row in PLAN if (row.profile, row.part) == (profile.name, part)]
    runs = {(*cell, seed): replace(run, seed=seed) for cell, run in PARTS[part].cells(profile).items()
            for cells, seeds in rows if cell in cells for seed in seeds}
    return pd.DataFrame([(*at, run) for at, run in runs.items()], columns=[*PARTS[part].factors, "seed", "run"])


def complete(plan: pd.DataFrame) -> pd.DataFrame:
    """The rows of a plan whose cells have all their declared runs finished."""
    finished = plan.run.map(lambda run: run.finished).astype(bool)
    factors = plan.columns.drop(["seed", "run"])
    return plan[finished.groupby([plan[name] for name in factors], sort=False).transform("all")]
