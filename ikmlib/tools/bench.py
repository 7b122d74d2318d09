"""What IKM costs in time and memory beside the vanilla convolution (claim C11): the released scheme's price, and ours.

Four schemes compute two functions. Vanilla: every layer convolves a concatenation, as dense networks are usually
written (`models`); or each feature is convolved once for all later layers (`fast`). IKM: as released, every layer makes
the attention of its whole input, and a grouped convolution applies it (`layers`); or rearranged (`fast`).
"""
from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ikmlib.layers import IKMConv2d
from ikmlib.models import ARCHITECTURES, SRNetwork
from ikmlib.study import records
from ikmlib.trainers import Captured, keep_memory

VANILLA, BY_INPUTS, RELEASED, OURS = "vanilla", "vanilla, by inputs", "IKM as released", "IKM, ours"
SCHEMES = (VANILLA, BY_INPUTS, RELEASED, OURS)
NAMES = {"layer": "one layer", "uhdb": "U-HDB", "uhdn": "U-HDN"}
PRICE = {"inference": 1.15, "training": 1.25}   # times vanilla: up to here, "at the price of a convolution"


# --- the schemes ----------------------------------------------------------------------------------------------------


def build(subject: str, scheme: str, channels: int = 64) -> nn.Module:
    """A layer (C -> C, 3 x 3) or a network of ARCHITECTURES at x2 in one of SCHEMES; equal weights for equal functions.

    Growth is in proportion to `channels`, as in U-HDN (12 to 64).
    """
    torch.manual_seed(0)
    modulated, fast = scheme in (RELEASED, OURS), scheme in (BY_INPUTS, OURS)
    if subject == "layer":
        model = (IKMConv2d if modulated else nn.Conv2d)(channels, channels, 3, padding=1, bias=False)
        model.fast = fast
    else:
        model = SRNetwork(replace(ARCHITECTURES[subject], attention="ikm" if modulated else "none", channels=channels,
                                  growth=channels * 3 // 16), 2, fast=fast)
    return model.to(memory_format=torch.channels_last)


# --- the measurement ------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """What is measured: `sweep` says for which table or figure; `size`: side of the square LR images, pixels."""

    sweep: str
    subject: str
    batch: int
    size: int
    channels: int = 64


def cases(quick: bool = False) -> list[Case]:
    """All cases of the full bench, or the few small ones that only show that it runs."""
    base, side, batches, sizes, widths = ((2, 12, (1, 4), (8, 16), (16, 32)) if quick else
                                          (8, 24, (1, 2, 4, 8, 16), (24, 48, 96, 144), (16, 32, 64, 128)))
    return ([Case("main", subject, base, side) for subject in NAMES]
            + [Case("main", "uhdn", 1, size) for size in (() if quick else (24, 96))]
            + [Case("batch", "uhdb", batch, side) for batch in batches]
            + [Case("size", "uhdb", 2 if quick else 4, size) for size in sizes]
            + [Case("channels", "uhdb", base, side, width) for width in widths])


def _inference(model: nn.Module, x: Tensor) -> None:
    with torch.inference_mode():
        model(x)


def _training(model: nn.Module, x: Tensor) -> Tensor:
    """Forward, backward and an update, as one training step; returns the loss."""
    model.zero_grad(set_to_none=True)
    loss = model(x).abs().mean()
    loss.backward()
    with torch.no_grad():
        torch._foreach_add_([p for p in model.parameters()], [p.grad for p in model.parameters()], alpha=-1e-6)
    return loss.detach()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _resident(field: str) -> int:
    """Bytes of resident memory (VmRSS) or of its peak (VmHWM) of this process; Linux."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


def peak_megabytes(work: Callable[[], None], device: torch.device) -> float:
    """Memory that `work` needs above what is in use before it: of the allocator on a GPU, of the process on Linux.

    NaN where the system does not tell. What stays after a first call (primitives, workspaces) counts if this is it.
    """
    if device.type == "cuda":
        _wait(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    with contextlib.suppress(OSError, StopIteration, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)   # give back what is free but kept
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")                # the peak is counted from here
        before = _resident("VmRSS")
        work()
        return (_resident("VmHWM") - before) / 1e6
    return float("nan")


def interleave(work: dict[str, Callable[[], None]], device: torch.device, seconds: float,
               least: int = 3) -> dict[str, np.ndarray]:
    """Seconds that each of `work` takes, turn by turn: (repetitions,) each, at least `least`, for about `seconds`.

    Turn by turn, because a machine's speed drifts: ratios of neighbours are steadier than ratios of means.
    """
    times, end = {name: [] for name in work}, time.perf_counter() + seconds
    while len(times[next(iter(work))]) < least or time.perf_counter() < end:
        for name, function in work.items():
            _wait(device)
            start = time.perf_counter()
            function()
            _wait(device)
            times[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in times.items()}


class Measured(NamedTuple):
    """One case and pass: of each scheme the seconds of all its repetitions, and its peak memory in MB."""

    seconds: dict[str, np.ndarray]
    peak_mb: dict[str, float]


def measure(case: Case, seconds: float, device: torch.device) -> dict[str, Measured]:
    """Every scheme, turn by turn, for about so many seconds a pass; by pass: inference, training."""
    random = torch.Generator().manual_seed(0)
    shape = (case.batch, case.channels if case.subject == "layer" else 3, case.size, case.size)
    x = torch.randn(shape, generator=random).to(device, memory_format=torch.channels_last)
    schemes = [scheme for scheme in SCHEMES if case.subject != "layer" or scheme != BY_INPUTS]
    models = {scheme: build(case.subject, scheme, case.channels).to(device) for scheme in schemes}
    passes = {"inference": {scheme: partial(_inference, model, x) for scheme, model in models.items()},
              "training": {scheme: partial(_training, model, x) for scheme, model in models.items()}}
    if device.type == "cuda":   # the step as `Trainer` takes it
        passes["training, captured"] = {scheme: partial(Captured(partial(_training, model)), x)
                                        for scheme, model in models.items()}
    found = {}
    for name, work in passes.items():
        for function in work.values():
            for _ in range(4):   # sets things up: primitives, workspaces, graphs
                function()
        peaks = {scheme: float("nan") if name == "training, captured" else peak_megabytes(function, device)
                 for scheme, function in work.items()}   # a graph's memory is set aside when it is captured
        found[name] = Measured(interleave(work, device, seconds), peaks)
    return found


def _rows(case: Case, name: str, rounds: Sequence[Measured]) -> list[dict]:
    """Rows of `table` for a case and a pass, from all rounds."""
    times = {scheme: np.concatenate([found.seconds[scheme] for found in rounds]) for scheme in rounds[0].seconds}
    rows = []
    for scheme, values in times.items():
        low, ratio, high = np.quantile(values / times[VANILLA], (0.25, 0.5, 0.75))
        rows.append({**case._asdict(), "pass": name, "scheme": scheme, "ms": 1e3 * np.median(values), "ratio": ratio,
                     "ratio_q1": low, "ratio_q3": high, "repetitions": len(values),
                     "peak_mb": np.median([found.peak_mb[scheme] for found in rounds])})
    return rows


def table(chosen: list[Case], *, seconds: float, rounds: int = 1, device: torch.device | None = None,
          show: bool = True) -> pd.DataFrame:
    """A row a case, pass and scheme: median time, ratio to vanilla (median, quartiles over repetitions), peak memory.

    `seconds`: for each case and pass, in each of the `rounds` through all cases: a machine can be slow for minutes. The
    ratio is of neighbours in time; see `interleave`.
    """
    device = device or records.default_device()
    keep_memory()
    found = {case: [] for case in chosen}
    for case in tqdm(chosen * rounds, desc="bench", unit="case", disable=not show, leave=False):
        found[case].append(measure(case, seconds, device))
    return pd.DataFrame([row for case, measured in found.items() for name in measured[0]
                         for row in _rows(case, name, [one[name] for one in measured])])


def bench(quick: bool = False) -> pd.DataFrame:
    """The whole bench: ten minutes on 2 CPU cores; `quick`: some ten seconds, small cases, not for numbers."""
    return table(cases(quick), seconds=0.1 if quick else 3.0, rounds=1 if quick else 3)


def main_table(costs: pd.DataFrame) -> pd.DataFrame:
    """Of `table`'s rows, those of a layer and the networks, without the sweeps.

    One column more, over_by_inputs: median time over that of vanilla rearranged like our scheme, so that what is left
    is the price of the modulation; NaN for the layer, which has nothing to rearrange.
    """
    shown, case = costs[costs.sweep == "main"].drop(columns=["sweep", "channels"]), ["subject", "batch", "size", "pass"]
    rearranged = shown.loc[shown.scheme == BY_INPUTS, [*case, "ms"]]
    shown = shown.merge(rearranged, "left", case, suffixes=("", "_by_inputs"))
    shown["over_by_inputs"] = shown.ms / shown.pop("ms_by_inputs")
    return shown.assign(subject=shown.subject.map(NAMES))


def _load() -> float:
    """Processes running or waiting, mean over the last minute; NaN where the system does not tell."""
    with contextlib.suppress(AttributeError, OSError):
        return os.getloadavg()[0]
    return float("nan")


def machine() -> pd.DataFrame:
    """Where and with what the bench ran: one row. The load is the machine's, with the bench's own threads."""
    device = records.default_device()
    return pd.DataFrame([{"device": records.device_name(device), "threads": torch.get_num_threads(),
                          "load_1min": _load(), "torch": torch.__version__, "python": platform.python_version(),
                          "git_commit": records.git_commit(),
                          "finished_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}])


# --- what it says ---------------------------------------------------------------------------------------------------


def ratios(costs: pd.DataFrame, scheme: str, column: str = "ratio") -> dict[str, float]:
    """U-HDN at the main batch, pass -> median ratio to vanilla, or another column of `main_table`."""
    rows = main_table(costs).query("subject == @NAMES['uhdn'] and scheme == @scheme")
    return rows[rows.batch == rows.batch.max()].set_index("pass")[column].to_dict()


def verdict(costs: pd.DataFrame) -> dict[str, str]:
    """C11 as keyword arguments of `Page.verdict`. The rule is stated in `because`."""
    released, ours, order = (ratios(costs, scheme) for scheme in (RELEASED, OURS, BY_INPUTS))
    own = ratios(costs, OURS, "over_by_inputs")
    slower = [released[name] > limit for name, limit in PRICE.items()]
    cheap = all(ours[name] <= limit for name, limit in PRICE.items())

    def text(found):
        return " and ".join(f"{found[name]:.2f}" for name in PRICE)

    return {"paper": "IKM is slower than the vanilla convolution, and an efficient variant is wanted (Section IV-E)",
            "ours": f"U-HDN, inference and training step, times vanilla: as released {text(released)}; ours "
                    f"{text(ours)}, which is {'' if cheap else 'not '}the price of a convolution; vanilla written by "
                    f"inputs {text(order)}; over a vanilla network rearranged the same way, ours {text(own)}",
            "verdict": "supported" if all(slower) else "mixed" if any(slower) else "not supported",
            "because": "Supported if U-HDN as released takes more than "
                       f"{PRICE['inference']} times vanilla's time for inference and more than {PRICE['training']} "
                       "times for a training step; below both, a scheme has the price of a convolution."}


def figure_sweep(costs: pd.DataFrame, sweep: str, value: str):
    """`value` (ratio | ms | peak_mb) of U-HDB against what `sweep` varies (batch | size | channels), a panel a pass."""
    import matplotlib.pyplot as plt

    axis = {"batch": "images in the batch", "size": "side of the LR image (pixels)", "channels": "channels C"}[sweep]
    label = {"ratio": "time / vanilla", "ms": "time (ms)", "peak_mb": "peak memory (MB)"}[value]
    figure, panels = plt.subplots(1, 2, figsize=(9, 4))
    for axes, name in zip(panels, PRICE, strict=True):
        shown = costs[(costs.sweep == sweep) & (costs["pass"] == name)]
        for scheme, marker in zip(SCHEMES, "osv^", strict=True):
            rows = shown[shown.scheme == scheme]
            axes.plot(rows[sweep], rows[value], marker=marker, label=scheme)
            if value == "ratio":
                axes.fill_between(rows[sweep], rows.ratio_q1, rows.ratio_q3, alpha=0.2)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(shown[sweep].unique()), sorted(shown[sweep].unique()), minor=False)
        axes.minorticks_off()
        if value != "ratio":
            axes.set_yscale("log")
        axes.set(title=name, xlabel=axis, ylabel=label)
    panels[0].legend(fontsize=10)
    return figure
