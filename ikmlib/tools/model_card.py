"""The model card of the weights: what was trained on what, how well it does, where it fails, what it cost.

Numbers come from the runs' records; the sentences are fixed, and true of every network of this study.
"""
from __future__ import annotations

from pathlib import Path

import pandas as pd

from ikmlib import config, datasets
from ikmlib.data import TEST_TWINS, imresize
from ikmlib.files import write_text
from ikmlib.metrics import psnr_y
from ikmlib.study import records, weights
from ikmlib.study.notebook import markdown_table
from ikmlib.trainers import pairs

SCHEDULES = {"halving": "halved after each third", "cosine": "with warm-up, then along half a cosine to 0"}
WORST = 5   # images shown under "where it fails"
USES = """## What the networks are for

Research on super-resolution: each enlarges RGB photographs by a whole factor, a file or a folder of them:
`python -m ikmlib upscale IN -o OUT --weights FILE`.

Licence of the weights: MIT, as far as we hold rights. Image sets they were trained on are for academic use only where
the table below says so; whether networks trained on those may be used otherwise was not examined.

- They were trained to undo one thing: MATLAB's bicubic down-sampling. Noise, JPEG blocks and the blur of a lens are
  outside their training: expect them to stay, or to be sharpened.
- Nothing was measured on medical, satellite or microscope images.
- Detail is plausible, not recorded: it is no evidence of who or what a picture shows.
- Whom the photographs show was not examined, nor whether quality differs between groups of people."""


def _data_section(names: tuple[str, ...]) -> str:
    """The image sets by name, with role, number of images, and licence."""
    sets = [datasets.SETS[name] for name in dict.fromkeys(names)]
    table = pd.DataFrame([(s.name, s.role, s.count, s.licence) for s in sets],
                         columns=["image set", "role", "images", "licence"])
    twins = "; ".join(f"{name} ({why})" for name, why in TEST_TWINS.items())
    return ("## Image sets\n\n" + markdown_table(table) + "\n\nNone is in the repository: `python -m ikmlib data "
            "fetch` downloads those that may be; `ikmlib/registry.csv` has files and sha256 of the smaller ones. No "
            f"image of a test set is trained on; left out because they show a test image: {twins}.")


def gains(entry: dict) -> pd.DataFrame:
    """Test images that are installed, smallest gain first: set, image, psnr_y, ssim_y, psnr_y_bicubic (dB), gain_db.

    `entry`: of `weights.index()`. Raises FileNotFoundError if the run's scores are not among the records.
    """
    scale = entry["spec"]["scale"]
    path = config.results_root() / entry["profile"] / "runs" / entry["id"] / "scores.csv"
    scores = pd.read_csv(path, dtype={"image": str})[["set", "image", "psnr_y", "ssim_y"]]
    images = records.test_images(config.get_profile(entry["profile"]), tuple(entry["spec"]["data"]))
    rows = []
    for name in sorted(set(scores["set"]) & set(images)):
        for image, lr, hr in pairs(images[name], scale):
            rows.append((name, image, psnr_y(imresize(lr, scale), hr, shave=scale)))
    both = scores.merge(pd.DataFrame(rows, columns=["set", "image", "psnr_y_bicubic"]))
    return both.assign(gain_db=both.psnr_y - both.psnr_y_bicubic).sort_values("gain_db", ignore_index=True)


def _scores_section(entry: dict) -> list[str]:
    """Means a test set and the images that gain least; a sentence in their place where no test set is installed."""
    per_image = gains(entry)
    if per_image.empty:
        return ["Bicubic scores and the images that gain least: not shown, none of the scored sets was installed."]
    means = per_image.groupby("set", sort=False).agg(
        images=("image", "count"), psnr_y=("psnr_y", "mean"), ssim_y=("ssim_y", "mean"),
        psnr_y_bicubic=("psnr_y_bicubic", "mean"), gain_db=("gain_db", "mean"),
        worst_gain_db=("gain_db", "min")).reset_index()
    below, worst = int((per_image.gain_db < 0).sum()), per_image.head(WORST)
    return [markdown_table(means), f"**Where it fails.** {below} of {len(per_image)} images are worse than by bicubic "
            f"interpolation. The {len(worst)} with the smallest gain:", markdown_table(worst)]


def beside_published(entry: dict) -> str:
    """A sentence: the network's PSNR on Set5 beside those of the networks in the paper's Tables I and II, one scale."""
    scale, ours = entry["spec"]["scale"], entry["scores"].get("Set5")
    if ours is None:
        return "Not scored on Set5, hence not compared with published networks: do not use it where quality matters."
    tables = pd.concat(pd.read_csv(config.PAPER / f"table{number}.csv") for number in (1, 2))
    published = tables[(tables.scale == scale) & (tables.method != "Bicubic")].Set5_psnr
    gap, warning = published.min() - ours["psnr_y"], ""
    if gap > 0:
        warning = f", {gap:.2f} dB below the worst of them: do not use it where quality matters"
    return (f"**Beside published networks.** On Set5, x{scale}, those in Tables I and II of the paper have "
            f"{published.min():.2f} to {published.max():.2f} dB; this one has {ours['psnr_y']:.2f} dB{warning}.")


def _network_section(name: str, entry: dict) -> list[str]:
    spec, profile = entry["spec"], config.get_profile(entry["profile"])
    warning = [] if profile.evidence else ["> **Not for use.** Trained only to see that everything runs."]
    left_out = ", ".join(entry["left_out_images"]) or "none"
    return [f"## {name}", *warning,
            f"x{spec['scale']}; {entry['params']:,} parameters, float32, {entry['bytes'] / 1e6:.1f} MB, sha256 "
            f"`{entry['sha256']}`; run `{entry['id']}` of profile {profile.name}, commit `{entry['git_commit']}`.",
            f"Trained on {', '.join(spec['data'])} (files `{entry['data_sha256']}`; images left out: {left_out}): "
            f"{spec['updates']:,} updates of {spec['batch']} patches of {spec['patch']} x {spec['patch']} LR pixels, "
            f"seed {spec['seed']}, Adam at {spec['rate']:g} {SCHEDULES[spec.get('schedule', 'halving')]}, mean "
            "absolute error of RGB.",
            f"Compute: {entry['train_seconds'] / 3600:.2f} hours on {entry['device']}, torch {entry['torch']}; by the "
            "clock, whatever else the machine did meanwhile and pauses of the process included.",
            beside_published(entry), *_scores_section(entry)]


def write() -> Path:
    """Write `MODEL_CARD.md` beside the weights, for all of them. Raises FileNotFoundError if there are none."""
    listed = weights.index()
    if not listed:
        raise FileNotFoundError(f"no weights in {weights.folder()}: export those of a run first")
    used = tuple(name for e in listed.values() for name in (*e["spec"]["data"], *e["scores"]))
    parts = ["# Model card", "Networks of the study of image-specific kernel modulation (arXiv 2111.08362). Scores are "
             "PSNR in dB and SSIM on Y, border pixels left out.", USES, _data_section(used)]
    for name in weights.table().file:
        parts += _network_section(name, listed[name])
    path = weights.folder() / "MODEL_CARD.md"
    write_text(path, "\n\n".join(parts) + "\n")
    return path
