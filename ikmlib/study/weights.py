"""Trained networks to keep and to use: `results/weights/<run id>.safetensors`. The header of a file holds the record of
its run, with the scores; see `networks`."""
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from ikmlib import config
from ikmlib.files import load_torch, read_csv
from ikmlib.networks import load, write
from ikmlib.study.records import Run, default_device, read_record


def folder() -> Path:
    """Where weights are kept: `weights/` below the folder of all records."""
    return config.results_root() / "weights"


def path(run: Run) -> Path:
    """Where a run's weights are kept."""
    return folder() / f"{run.id}.safetensors"


def export(run_folder: str | Path, half: bool = False) -> Path:
    """Write the weights of the finished run in `run_folder` to `folder()`, in float32 or `half` precision; the file.

    Raises FileNotFoundError if the run is not finished or its `weights.pt` is not on this machine.
    """
    record, local = read_record(Path(run_folder)), Path(run_folder, "weights.pt")
    if not local.exists():
        raise FileNotFoundError(f"{run_folder} has no weights.pt: weights are exported where the run was trained")
    state = load_torch(local, record["id"])["model"]
    scores = pd.concat(map(read_csv, local.parent.glob("scores*.csv"))).groupby("set")   # of sets that came later, too
    record["scores"] = {name: {"images": len(of), "psnr_y": round(of.psnr_y.mean(), 4),
                               "ssim_y": round(of.ssim_y.mean(), 5)} for name, of in scores}
    target = folder() / f"{record['id']}.safetensors"
    write(target, state, record, torch.float16 if half else torch.float32)
    return target


def trained_network(run: Run) -> nn.Module | None:
    """The network of a finished run on the default device, in evaluation mode; None if its weights are not at hand.
    Raises ValueError for a damaged file."""
    local = run.folder / "weights.pt"
    if local.exists():
        model = run.build()
        model.load_state_dict(load_torch(local, run.id)["model"])
    elif path(run).exists():
        model, _ = load(path(run))
    else:
        return None
    return model.to(default_device(), memory_format=torch.channels_last).eval()


def best(scale: int) -> Path:
    """The study's weights for a scale that have the highest PSNR on Set5; those not scored on it come last.

    Raises FileNotFoundError if there are none, and as `load` does.
    """
    records = {file: load(file)[1] for file in folder().glob("*.safetensors")}
    fitting = [file for file, record in records.items() if "scores" in record and record["spec"]["scale"] == scale]
    if not fitting:
        raise FileNotFoundError(f"no weights for x{scale} in {folder()}: train a network and run `python -m ikmlib "
                                "weights export RUN_FOLDER`, or name a file with --weights, such as those in "
                                f"{config.ROOT / 'results' / 'weights'}")
    return max(fitting, key=lambda file: records[file]["scores"].get("Set5", {"psnr_y": 0})["psnr_y"])
