"""Where things are, and how much each profile does.

A profile says how much is done (updates, batch, images, depth of the ablations' network) and which schedule of the rate
suits so many updates. Equations, loss, data split and scoring are the same in all profiles.
"""
import os
import shutil
import subprocess
import warnings
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAPER = Path(__file__).resolve().parent / "paper"


def require(name: str, value, allowed) -> None:
    """Raise ValueError, which says what is allowed, unless `value` is one of them."""
    if value not in allowed:
        raise ValueError(f"unknown {name} {value!r}; allowed: {', '.join(map(str, allowed))}")


def folder_from(variable: str) -> Path | None:
    """The folder that an environment variable names; None if it is unset or empty. ValueError for an unknown home."""
    value = os.path.expanduser(os.environ.get(variable, ""))
    if value.startswith("~"):
        raise ValueError(f"{variable}={value}: there is no such home folder")
    return Path(value) if value else None


def results_root() -> Path:
    """Folder of all records: `IKM_RESULTS`, else `results/` of the project."""
    return folder_from("IKM_RESULTS") or ROOT / "results"


def cache_root() -> Path:
    """Folder of downloaded image sets: `IKM_CACHE`, else `~/.cache/ikm`, with its `~` where no home is known."""
    return folder_from("IKM_CACHE") or Path(os.path.expanduser("~/.cache/ikm"))


def cores() -> int:
    """CPU cores that this process may use; `taskset` and its like may leave it fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Profile:
    """How much one profile trains and scores: on all of `train_sets`, and those of `test_sets` that are installed."""

    name: str
    summary: str
    updates: int                    # optimiser steps of one run
    batch: int                      # patches in a mini-batch
    patch: int                      # LR patch side, pixels
    train_sets: tuple[str, ...]
    test_sets: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2)   # of what trains beside `experiments.PLAN`
    test_crop: int | None = None    # centre crop of test images, HR pixels; None scores whole images
    validations: int = 10           # points of the validation curve
    final_updates: int | None = None   # optimiser steps of the final models (Tables I and II); None: `updates`
    evidence: bool = True           # False: numbers of this profile never carry a verdict
    rate: float = 2e-4              # largest learning rate of Adam
    schedule: str = "halving"       # how it falls, see `trainers.learning_rate`
    blocks: int = 4                 # N of the ablations' network, 4 in the paper (Tables IV, V, Figs. 8, 9, 11)


BENCHMARKS = ("Set5", "Set14", "BSD100", "Urban100", "Manga109")
CLASSIC = ("T91", "BSDS500")   # the training images of the years before DIV2K

# From the smallest budget to the largest. Notebook 00 shows how the rate and the batch of `cpu` and `cpu-long` were
# chosen on validation images.
PROFILES = {
    p.name: p
    for p in (
        Profile("smoke", "does everything run? Embedded photographs, minutes on two CPU cores; not evidence",
                updates=10, batch=4, patch=16, train_sets=("embedded-train",), test_sets=("embedded-test",),
                seeds=(0,), test_crop=128, validations=2, evidence=False, blocks=1),
        Profile("cpu", "one network in minutes on one CPU core", updates=4000, batch=4, patch=24, train_sets=CLASSIC,
                test_sets=BENCHMARKS[:3], rate=1e-3, schedule="cosine", blocks=1),
        Profile("cpu-long", "four times the updates of `cpu`", updates=16_000, batch=4, patch=24, train_sets=CLASSIC,
                test_sets=BENCHMARKS[:3], rate=1e-3, schedule="cosine", blocks=1),
        Profile("small", "the reduced-data reproduction on one GPU", updates=10_000, batch=16, patch=32,
                train_sets=CLASSIC, test_sets=BENCHMARKS, rate=1e-3, schedule="cosine"),
        Profile("paper", "the published budget, as we read it", updates=200_000, batch=16, patch=48,
                train_sets=("DIV2K",), test_sets=BENCHMARKS, validations=100, final_updates=1_000_000),
    )
}


def get_profile(name: str) -> Profile:
    """The profile called `name`; `auto` is `small` where CUDA is, else `smoke`. ValueError for any other name."""
    if name == "auto":
        import torch

        name = "small" if torch.cuda.is_available() else "smoke"
        if name == "smoke" and shutil.which("nvidia-smi"):
            words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            driver = subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
            warnings.warn(f"nvidia-smi is there, but torch {torch.__version__} finds no GPU: the NVIDIA driver "
                          f"({driver}) may be too old for it, or it is built without CUDA. IKM_TORCH_INDEX can name "
                          "an index of another build (./run_all.sh --help)", stacklevel=2)
    require("profile", name, ("auto", *PROFILES))
    return PROFILES[name]
