"""Where things are, and how much each profile does.

A profile says how much is done (updates, seeds, images), never what is done: equations, loss and scoring protocol are
the same in all of them.
"""
from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAPER = Path(__file__).resolve().parent / "paper"


def results_root() -> Path:
    """Folder of all records: `IKM_RESULTS`, else `results/` of the project."""
    return Path(os.environ.get("IKM_RESULTS") or ROOT / "results")


def cache_root() -> Path:
    """Folder of downloaded image sets: `IKM_CACHE`, else `~/.cache/ikm`."""
    return Path(os.environ.get("IKM_CACHE") or Path.home() / ".cache" / "ikm")


@dataclass(frozen=True)
class Profile:
    """How much one profile trains and scores.

    `train_sets` and `test_sets` are tried in order; a profile whose training sets are not installed falls back to the
    embedded photographs, and every record says which it used.
    """

    name: str
    summary: str
    updates: int                    # optimiser steps of one run
    batch: int                      # patches in a mini-batch
    patch: int                      # LR patch side, pixels
    seeds: tuple[int, ...]
    train_sets: tuple[str, ...]
    test_sets: tuple[str, ...]
    test_crop: int | None = None    # centre crop of test images, HR pixels; None scores whole images
    validations: int = 10           # points of the validation curve
    final_updates: int | None = None   # optimiser steps of the final models (Tables I and II); None: `updates`
    evidence: bool = True           # False: numbers of this profile never carry a verdict
    rate: float = 2e-4              # largest learning rate of Adam
    schedule: str = "halving"       # how it falls, see `trainers.learning_rate`


BENCHMARKS = ("Set5", "Set14", "BSD100", "Urban100", "Manga109")

PROFILES = {
    p.name: p
    for p in (
        Profile("smoke", "does everything run? Embedded photographs, minutes on two CPU cores; not evidence",
                updates=30, batch=4, patch=16, seeds=(0,), train_sets=("embedded-train",),
                test_sets=("embedded-test",), test_crop=128, validations=3, evidence=False),
        Profile("recipe", "chooses the rate and the batch of the CPU profiles on validation images; no test image is seen",
                updates=4000, batch=4, patch=24, seeds=(100, 101), train_sets=("T91", "BSDS500"), test_sets=(),
                evidence=False, rate=1e-3, schedule="cosine"),
        Profile("cpu", "weak but real evidence: Table III in a night on a laptop without a GPU, the rest in days",
                updates=2000, batch=8, patch=24, seeds=(0, 1, 2, 3, 4), train_sets=("T91", "BSDS500"),
                test_sets=BENCHMARKS[:3]),   # seeds 3 and 4 came later: with three, most of Table III was undecided
        Profile("small", "the reduced-data reproduction on one GPU",
                updates=30_000, batch=16, patch=48, seeds=(0, 1, 2), train_sets=("T91", "BSDS500"),
                test_sets=BENCHMARKS, validations=30),
        Profile("paper", "the published budget", updates=200_000, batch=16, patch=48, seeds=(0, 1, 2),
                train_sets=("DIV2K",), test_sets=BENCHMARKS, validations=100, final_updates=1_000_000),
    )
}


def get_profile(name: str) -> Profile:
    """The profile called `name`; `auto` is `small` where CUDA is, else `smoke`.

    Raises ValueError for a name that is not one of PROFILES or `auto`.
    """
    if name == "auto":
        import torch

        name = "small" if torch.cuda.is_available() else "smoke"
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}; allowed: auto, {', '.join(PROFILES)}")
    return PROFILES[name]
