"""Writes results/weights/MODEL_CARD.md: what was trained on what, how well it does, where it fails, what it cost."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import pandas as pd

from ikmlib import config, datasets
from ikmlib.data import imresize
from ikmlib.files import write_text
from ikmlib.metrics import psnr_y
from ikmlib.study import records, weights
from ikmlib.study.notebook import markdown_table
from ikmlib.trainers import pairs

ABOUT = """# Model card

Networks of the study of image-specific kernel modulation (arXiv 2111.08362), for research on super-resolution. Each
enlarges RGB photographs by a whole factor: `python -m ikmlib upscale IN -o OUT --weights FILE`. A file's header holds
the whole record of its run, the scores, and a sha256. Scores are PSNR in dB and SSIM on Y, border pixels left out.

- They were trained to undo one thing: MATLAB's bicubic down-sampling. Noise, JPEG blocks and the blur of a lens are
  outside their training: expect them to stay, or to be sharpened.
- Detail is plausible, not recorded: it is no evidence of who or what a picture shows.
- Not examined: medical, satellite or microscope images; whether quality differs between people who are shown.
- Licence of the weights: MIT, as far as we hold rights. Image sets they were trained on are for academic use only where
  the table says so; whether such networks may be used otherwise was not examined. No test image is trained on."""

# Of each image set, with whom to cite
LICENCES = {
    "Set5": "academic use; cite Bevilacqua et al. 2012",
    "Set14": "academic use; cite Zeyde et al. 2010",
    "BSD100": "academic use; cite Arbelaez et al. 2011",
    "Urban100": "academic use; cite Huang et al. 2015",
    "Manga109": "no redistribution; cite Matsui et al. 2017",
    "T91": "academic use; cite Yang et al. 2010",
    "BSDS500": "academic use; cite Arbelaez et al. 2011",
    "DIV2K": "academic use only; cite Agustsson and Timofte 2017",
    "embedded-train": "NASA, public domain (2); Scharstein et al. 2014",
    "embedded-test": "CC0, S. van der Walt; CC0, R. Michetti",
}


@cache
def bicubic(profile: str, scale: int) -> pd.DataFrame:
    """The test images of a profile that are installed, as bicubic interpolation restores them: set, image,
    psnr_y_bicubic (dB)."""
    images = records.scored_images(config.get_profile(profile))
    rows = [(name, image, psnr_y(imresize(lr, scale), hr, shave=scale))
            for name in images for image, lr, hr in pairs(images[name], scale)]
    return pd.DataFrame(rows, columns=["set", "image", "psnr_y_bicubic"])


def gains(entry: dict) -> pd.DataFrame:
    """The run's test images, smallest gain first: set, image, psnr_y, ssim_y, psnr_y_bicubic (dB), gain_db.

    `entry`: of `weights.load`. Raises FileNotFoundError if the images are not there.
    """
    run = records.Run.from_record(entry)
    scores, known = run.scores(), bicubic(run.profile, run.scale)
    both = scores[["set", "image", "psnr_y", "ssim_y"]].merge(known)
    if len(both) < len(scores):
        raise FileNotFoundError(f"{entry['id']} was scored on {', '.join(scores['set'].unique())}; "
                                f"installed are only {', '.join(known['set'].unique()) or 'none of them'}")
    return both.assign(gain_db=both.psnr_y - both.psnr_y_bicubic).sort_values("gain_db", ignore_index=True)


def beside_published(scale: int, psnr: Sequence[float]) -> str:
    """A sentence: PSNR on Set5 (dB) of networks of one kind, beside those in the paper's Tables I and II."""
    tables = pd.concat(pd.read_csv(config.PAPER / f"table{number}.csv") for number in (1, 2))
    published = tables[(tables.scale == scale) & (tables.method != "Bicubic")].Set5_psnr
    ours = " to ".join(dict.fromkeys(f"{value:.2f}" for value in (min(psnr), max(psnr))))
    warning = "" if min(psnr) >= published.min() else " **Do not use it where quality matters.**"   # also if not scored
    return (f"On Set5, x{scale}, the networks in Tables I and II of the paper have {published.min():.2f} to "
            f"{published.max():.2f} dB, {'this one' if len(psnr) == 1 else 'these'} {ours} dB.{warning}")


def _section(kind: str, files: Mapping[str, dict]) -> list[str]:
    """What the card says of networks that differ in nothing but their seed. `files`: name -> header."""
    entries = [*files.values()]
    entry, spec = entries[0], entries[0]["spec"]
    hours = " to ".join(dict.fromkeys(f"{seconds / 3600:.2f}" for seconds in (
        min(e["train_seconds"] for e in entries), max(e["train_seconds"] for e in entries))))
    scores = pd.DataFrame([{"file": file} | {f"{name}_{metric}": of[metric] for name, of in e["scores"].items()
                                             for metric in ("psnr_y", "ssim_y")} for file, e in files.items()])
    said = [f"## {kind}", f"x{spec['scale']}, {entry['params']:,} parameters. Trained on {', '.join(spec['data'])}: "
            f"{spec['updates']:,} updates of {spec['batch']} patches of {spec['patch']} x {spec['patch']} LR pixels, "
            f"{hours} hours by the clock, pauses included, on {'; '.join(sorted({e['device'] for e in entries}))}.",
            beside_published(spec["scale"], [e["scores"].get("Set5", {}).get("psnr_y", math.nan) for e in entries]),
            "Means over the images of the test sets:", markdown_table(scores)]
    if entry["profile"] not in config.PROFILES or not records.Run.from_record(entry).finished:
        return [*said, "Its run is of the first evidence, which was discarded; its record stands in the file's header."]
    table = pd.concat(map(gains, entries)).groupby(["set", "image"], as_index=False).mean().sort_values("gain_db")
    over = f", in the mean over these {len(entries)} networks" * (len(entries) > 1)
    return [*said, f"{(table.gain_db < 0).sum()} of {len(table)} images are worse than by bicubic interpolation{over}. "
            "The smallest gains:", markdown_table(table.head())]


def write() -> Path:
    """Write `MODEL_CARD.md` beside the weights, for all of them; the file."""
    path = weights.folder() / "MODEL_CARD.md"
    known = {file.name: weights.load(file)[1] for file in weights.folder().glob("*.safetensors")}
    kinds: dict[str, dict[str, dict]] = {}
    for file, entry in sorted(known.items(), key=lambda item: (item[1]["spec"]["scale"], item[1]["spec"]["seed"])):
        name = f"{file.partition('-seed')[0]}, profile {entry['profile']}, {entry['spec']['updates']:,} updates"
        kinds.setdefault(name, {})[file] = entry
    used = dict.fromkeys(name for entry in known.values() for name in (*entry["spec"]["data"], *entry["scores"]))
    sets = pd.DataFrame([(s.name, s.role, s.count, LICENCES[s.name]) for s in map(datasets.SETS.get, used)],
                        columns=["image set", "role", "images", "licence"])
    parts = [part for kind, files in kinds.items() for part in _section(kind, files)]
    write_text(path, "\n\n".join([ABOUT, markdown_table(sets), *parts]) + "\n")
    return path


if __name__ == "__main__":
    print(write())
