"""Time and memory of IKM beside the vanilla convolution (claim C11); notebook 13 shows what is compared, and judges."""

import ctypes
import os
import platform
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ikmlib.layers import IKMConv2d
from ikmlib.models import ARCHITECTURES, SRNetwork
from ikmlib.study import records
from ikmlib.trainers import keep_memory

# Scheme -> attention, and whether `fast` computes it; ratios are to the first one's times
SCHEMES = {"vanilla": ("none", False), "vanilla, by inputs": ("none", True),
           "IKM as released": ("ikm", False), "IKM, ours": ("ikm", True)}
KEYS = ["sweep", "subject", "batch", "size", "channels", "pass", "scheme"]
# What for; a layer, or a network of ARCHITECTURES; images; side of the square LR images in pixels; C
CASES = [*(("main", subject, 8, 24, 64) for subject in ("layer", "uhdb", "uhdn")),
         *(("main", "uhdn", 1, size, 64) for size in (24, 96)),
         *(("batch", "uhdb", batch, 24, 64) for batch in (1, 2, 4, 8, 16)),
         *(("size", "uhdb", 4, size, 64) for size in (24, 48, 96, 144)),
         *(("channels", "uhdb", 8, 24, channels) for channels in (16, 32, 64, 128))]
QUICK = [(*kind, 2, 8, 16) for kind in dict.fromkeys(case[:2] for case in CASES)]   # shows that it runs


def build(subject: str, scheme: str, channels: int) -> nn.Module:
    """A layer (C -> C, 3 x 3), or a network at x2 with growth 3/16 C; equal weights for equal functions."""
    torch.manual_seed(0)
    attention, fast = SCHEMES[scheme]
    if subject == "layer":
        model = (nn.Conv2d if attention == "none" else IKMConv2d)(channels, channels, 3, padding=1, bias=False)
        model.fast = fast
    else:
        arch = replace(ARCHITECTURES[subject], channels=channels, growth=channels * 3 // 16, attention=attention)
        model = SRNetwork(arch, 2, fast=fast)
    return model.to(records.default_device(), memory_format=torch.channels_last)


def one_pass(model: nn.Module, x: Tensor, training: bool) -> None:
    """An inference, or a training step: forward, backward and an update."""
    with torch.inference_mode(not training):
        y = model(x)
    if training:
        model.zero_grad()
        y.abs().mean().backward()
        with torch.no_grad():
            torch._foreach_add_(list(model.parameters()), [p.grad for p in model.parameters()], alpha=-1e-6)
    if x.is_cuda:
        torch.cuda.synchronize()


def peak_megabytes(work: partial) -> float:
    """Memory that a call needs above what is in use: of a GPU's allocator, or of the process on Linux; else NaN."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)                # give back what is free but kept
        Path("/proc/self/clear_refs").write_text("5")   # the peak is counted from here
        before = Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]
        work()
        peak = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
        return (int(peak) - int(before)) * 1024 / 1e6
    return float("nan")


def measure(case: tuple, seconds: float) -> Iterator[tuple]:
    """Rows of KEYS, ms, ms over vanilla's, MB. A machine's speed drifts, so all schemes take turns: for about so many
    seconds a pass, and at least three. A row is of one turn."""
    _, subject, batch, size, channels = case
    x = torch.randn(batch, channels if subject == "layer" else 3, size, size, device=records.default_device())
    x = x.to(memory_format=torch.channels_last)
    schemes = [s for s in SCHEMES if subject != "layer" or s != "vanilla, by inputs"]   # a layer: nothing to rearrange
    models = [build(subject, scheme, channels) for scheme in schemes]
    for name in ("inference", "training"):
        work = [partial(one_pass, model, x, name == "training") for model in models]
        for function in work * 4:   # sets things up: primitives, workspaces
            function()
        peaks = [peak_megabytes(function) for function in work]
        turns, end = [], time.perf_counter() + seconds
        while len(turns) < 3 or time.perf_counter() < end:
            clock = [time.perf_counter()]
            for function in work:
                function()
                clock.append(time.perf_counter())
            turns.append(1e3 * np.diff(clock))
        yield from ((*case, name, *row) for ms in turns for row in zip(schemes, ms, ms / ms[0], peaks, strict=True))


def bench(quick: bool = False) -> pd.DataFrame:
    """A row a case, pass and scheme: medians, and the ratio's quartiles. Ten minutes on 2 cores; `quick`: seconds."""
    keep_memory()
    chosen, seconds = (QUICK, 0.0) if quick else (CASES * 3, 3.0)   # in rounds: a machine can be slow for minutes
    rows = [row for case in tqdm(chosen, desc="bench", leave=False) for row in measure(case, seconds)]
    groups = pd.DataFrame(rows, columns=[*KEYS, "ms", "ratio", "peak_mb"]).groupby(KEYS, sort=False)
    low, high = (groups["ratio"].quantile(q) for q in (0.25, 0.75))
    table = groups.median().assign(ratio_q1=low, ratio_q3=high, repetitions=groups.size())
    return table[["ms", "ratio", "ratio_q1", "ratio_q3", "repetitions", "peak_mb"]].reset_index()


def machine() -> pd.DataFrame:
    """Where and with what the bench ran: one row. The load is the machine's, with the bench's own threads."""
    return pd.DataFrame([{"device": records.device_name(records.default_device()), "threads": torch.get_num_threads(),
                          "load_1min": os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan"),
                          "torch": torch.__version__, "python": platform.python_version(),
                          "git_commit": records.git_commit(),
                          "finished_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}])
