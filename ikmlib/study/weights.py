"""Trained networks to keep and to use: `results/weights/<run id>.safetensors` holds float32 tensors and, as metadata,
their run's record. `index.json` beside it lists records, scores and sha256."""
from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pandas as pd
import torch

from ikmlib import config
from ikmlib.files import load_torch, locked, read_csv, read_json, reading, sha256, write_bytes, write_text
from ikmlib.models import SRNetwork
from ikmlib.study.records import Run, default_device, read_record

METADATA = "ikmlib"   # one key: safetensors writes several in any order, and the file's sha256 would vary
SHIPPED = config.ROOT / "results" / "weights"   # used where the folder of weights has none


def folder() -> Path:
    """Where weights are kept: `weights/` below the folder of all records."""
    return config.results_root() / "weights"


def index(where: Path | None = None) -> dict[str, dict]:
    """Of a folder of weights, by default `folder()`: file name -> record of the run, with scores, bytes and sha256."""
    path = (where or folder()) / "index.json"
    return read_json(path) if path.exists() else {}


def path(run: Run) -> Path:
    """Where a run's weights are kept."""
    return folder() / f"{run.id}.safetensors"


def export(run_folder: str | Path) -> Path:
    """Write the weights of the finished run in `run_folder` to `folder()` and enter them in its index; the file.

    Raises FileNotFoundError if the run is not finished or its `weights.pt` is not on this machine.
    """
    from safetensors.torch import save

    record, local = read_record(Path(run_folder)), Path(run_folder, "weights.pt")
    if not local.exists():
        raise FileNotFoundError(f"{run_folder} has no weights.pt: weights are exported where the run was trained")
    state = load_torch(local, record["id"])["model"]
    data = save({name: tensor.float().contiguous() for name, tensor in state.items()},
                {METADATA: json.dumps(record, sort_keys=True)})
    scores = {name: {"images": len(of), "psnr_y": round(of.psnr_y.mean(), 4), "ssim_y": round(of.ssim_y.mean(), 5)}
              for name, of in read_csv(local.with_name("scores.csv")).groupby("set")}
    target = folder() / f"{record['id']}.safetensors"
    entry = {**record, "scores": scores, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    with locked(folder() / ".lock", wait=True):
        write_bytes(target, data)
        write_text(folder() / "index.json", json.dumps({**index(), target.name: entry}, indent=1) + "\n")
    return target


def load(path: str | Path) -> tuple[SRNetwork, dict]:
    """The network of a weights file, in evaluation mode, and its record.

    Raises FileNotFoundError, and ValueError for a file that is not what the `index.json` beside it lists, if there is
    one, or that holds no network of this project.
    """
    from safetensors import safe_open

    path = Path(path)
    digest, listed = sha256(path), index(path.parent)
    if listed and digest != (expected := listed.get(path.name, {}).get("sha256", "nothing")):
        raise ValueError(f"{path} has sha256 {digest}, the index.json beside it lists {expected}")
    with reading(path):
        with safe_open(path, "pt") as file:
            record = json.loads((file.metadata() or {})[METADATA])
            state = {name: file.get_tensor(name) for name in file.keys()}
        run = Run.from_record(record)
        model = run.build()
        model.load_state_dict(state)   # strict: missing and unexpected keys and wrong shapes are errors
        if not all(tensor.isfinite().all() for tensor in state.values()):
            raise ValueError("numbers that are not finite")
    return model.eval(), record


def trained_network(run: Run) -> SRNetwork | None:
    """The network of a finished run on the default device, in evaluation mode; None if its weights are not at hand.

    Raises UnreadableCheckpoint or ValueError for a damaged file.
    """
    local, *kept = run.folder / "weights.pt", *(where / f"{run.id}.safetensors" for where in (folder(), SHIPPED))
    if local.exists():
        model = run.build()
        model.load_state_dict(load_torch(local, run.id)["model"])
    else:
        model = next((load(file)[0] for file in kept if file.exists()), None)
    return model and model.to(default_device(), memory_format=torch.channels_last).eval()


def table(where: Path | None = None) -> pd.DataFrame:
    """The weights in a folder, by default `folder()` or, if that has none, SHIPPED: file, scale, profile, updates,
    images scored, psnr_y (dB, mean over them), mb. Of a scale the best come first: of the largest profile, on most
    images, with the highest PSNR."""
    rows = []
    for name, entry in index(where or (folder() if index() else SHIPPED)).items():
        images = sum(scores["images"] for scores in entry["scores"].values())
        psnr = sum(scores["images"] * scores["psnr_y"] for scores in entry["scores"].values()) / images
        rows.append((name, entry["spec"]["scale"], entry["profile"], entry["spec"]["updates"], images, psnr,
                     entry["bytes"] / 1e6))
    rows.sort(key=lambda row: (row[1], -list(config.PROFILES).index(row[2]), -row[4], -row[5]))
    return pd.DataFrame(rows, columns=["file", "scale", "profile", "updates", "images", "psnr_y", "mb"])


def best(scale: int) -> Path:
    """The best weights for a scale (see `table`), of `folder()` if that has any, else of SHIPPED; FileNotFoundError if
    neither has."""
    for where in (folder(), SHIPPED):
        for row in table(where).itertuples():
            if row.scale == scale:
                return where / row.file
    raise FileNotFoundError(f"no weights for x{scale} in {folder()} and {SHIPPED}: train a network and run `python -m "
                            "ikmlib weights export RUN_FOLDER`, or name a file with --weights")
