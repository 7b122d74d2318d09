"""Trained networks to keep and to use: a run's weights as one safetensors file, listed with its sha256 in an index.

`results/weights/<run id>.safetensors` holds float32 tensors and, as metadata, what they belong to; `index.json` beside
it says the same for people, with scores. A file is loaded only if it is what the index says and fits its network.
"""
from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pandas as pd
import torch

from ikmlib import config
from ikmlib.files import locked, write_bytes, write_text
from ikmlib.models import SCALES, Architecture, SRNetwork
from ikmlib.study.records import Run, default_device
from ikmlib.trainers import load_checkpoint

METADATA = "ikmlib"   # one key: safetensors writes several in any order, and the file's sha256 would vary


def folder() -> Path:
    """Where weights are kept: `weights/` below the folder of all records."""
    return config.results_root() / "weights"


def index(where: Path | None = None) -> dict[str, dict]:
    """Of a folder of weights: file name -> its run's record, with `scores`, `bytes` and `sha256`."""
    path = (where or folder()) / "index.json"
    return json.loads(path.read_text()) if path.exists() else {}


def export(run_folder: str | Path) -> Path:
    """Write the weights of the finished run in `run_folder` to the folder of weights and enter them in its index.

    Returns the file. Raises FileNotFoundError if the run is not finished or its `weights.pt` is not on this machine.
    """
    from safetensors.torch import save

    run_folder = Path(run_folder)
    for name in ("run.json", "weights.pt"):
        if not (run_folder / name).exists():
            raise FileNotFoundError(f"{run_folder} has no {name}: weights are exported where the run was trained, once "
                                    "it is finished")
    record = json.loads((run_folder / "run.json").read_text())
    state = load_checkpoint(run_folder / "weights.pt", record["id"])["model"]
    _network(record, state, run_folder)
    tensors = {name: tensor.float().contiguous() for name, tensor in state.items()}
    data = save(tensors, {METADATA: json.dumps(record, sort_keys=True)})
    target = folder() / f"{record['id']}.safetensors"
    entry = {**record, "scores": _scores(run_folder), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    with locked(folder() / ".lock", wait=True):
        if index().get(target.name) != entry or not target.exists():
            write_bytes(target, data)
            write_text(folder() / "index.json", json.dumps({**index(), target.name: entry}, indent=1) + "\n")
    return target


def _scores(run_folder: Path) -> dict[str, dict[str, float]]:
    """Test set -> number of images, mean PSNR (dB) and SSIM on Y."""
    per_set = pd.read_csv(run_folder / "scores.csv").groupby("set")
    return {name: {"images": len(rows), "psnr_y": round(rows.psnr_y.mean(), 4), "ssim_y": round(rows.ssim_y.mean(), 5)}
            for name, rows in per_set}


def load(path: str | Path) -> tuple[SRNetwork, dict]:
    """The network of a weights file, in evaluation mode, and its record.

    Raises FileNotFoundError, and ValueError for a file that differs from its entry in the `index.json` beside it, is no
    weights file of this project, or does not fit its network. Where there is no index, only the fit is checked.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    digest, listed = hashlib.sha256(path.read_bytes()).hexdigest(), index(path.parent)
    if listed and path.name not in listed:
        raise ValueError(f"{path} is not listed in {path.parent / 'index.json'}")
    if listed and digest != listed[path.name]["sha256"]:
        raise ValueError(f"{path} has sha256 {digest}, its index says {listed[path.name]['sha256']}: it is damaged or "
                         "another file")
    try:
        with safe_open(path, "pt") as file:
            record = json.loads((file.metadata() or {})[METADATA])
            state = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no weights file of this project ({type(error).__name__}: {error}); "
                         "`python -m ikmlib weights export RUN_FOLDER` makes one") from error
    return _network(record, state, path).eval(), record


def _network(record: dict, state: dict[str, torch.Tensor], path: Path) -> SRNetwork:
    """The network of a record with these weights. Raises ValueError naming what does not fit."""
    try:
        arch = record["spec"]["arch"]
        model = SRNetwork(Architecture(**{**arch, "depths": tuple(arch["depths"])}), record["spec"]["scale"])
        model.load_state_dict(state)   # strict: missing and unexpected keys and wrong shapes are errors
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path} does not fit its network: {error}") from error
    bad = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise ValueError(f"{path} holds values that are not finite: {', '.join(bad)}")
    return model


def trained_network(run: Run) -> SRNetwork | None:
    """The network of a finished run on the default device, in evaluation mode; None if its weights are not at hand.

    Raises UnreadableCheckpoint or ValueError for a damaged file.
    """
    local, kept = run.folder / "weights.pt", folder() / f"{run.id}.safetensors"
    if local.exists():
        model = run.build()
        model.load_state_dict(load_checkpoint(local, run.id)["model"])
    elif kept.exists():
        model, _ = load(kept)
    else:
        return None
    return model.to(default_device(), memory_format=torch.channels_last).eval()


def table() -> pd.DataFrame:
    """The weights there are, best first: file, scale, profile, updates, images scored, psnr_y (dB, mean over them), mb.

    Best is of the largest profile, scored on most images, with the highest PSNR.
    """
    profiles = list(config.PROFILES)
    rows = [(name, entry["spec"]["scale"], entry["profile"], entry["spec"]["updates"],
             _images(entry), _mean_psnr(entry), entry["bytes"] / 1e6) for name, entry in index().items()]
    frame = pd.DataFrame(rows, columns=["file", "scale", "profile", "updates", "images", "psnr_y", "mb"])
    rank = frame.profile.map(lambda name: profiles.index(name) if name in profiles else -1)
    return frame.assign(rank=rank).sort_values(["scale", "rank", "images", "psnr_y"],
                                               ascending=[True, False, False, False]).drop(
        columns="rank").reset_index(drop=True)


def _images(entry: dict) -> int:
    return sum(s["images"] for s in entry["scores"].values())


def _mean_psnr(entry: dict) -> float:
    return sum(s["images"] * s["psnr_y"] for s in entry["scores"].values()) / _images(entry)


def best(scale: int) -> Path:
    """The best weights for a scale; see `table`.

    Raises FileNotFoundError, naming what there is, if there are none; ValueError for an unknown scale.
    """
    if scale not in SCALES:
        raise ValueError(f"unknown scale {scale!r}; allowed: {', '.join(map(str, SCALES))}")
    have = table()
    fit = have[have.scale == scale]
    if fit.empty:
        there = ", ".join(f"{row.file} (x{row.scale})" for row in have.itertuples()) or "none"
        raise FileNotFoundError(f"no weights for x{scale} in {folder()}; there: {there}. Train a network and run "
                                "`python -m ikmlib weights export RUN_FOLDER`, or name a file with --weights")
    return folder() / fit.file.iloc[0]
