"""Trained networks to keep and to use: `results/weights/<run id>.safetensors`. The header of a file holds the record of
its run, with the scores; see `networks`."""
from __future__ import annotations

from pathlib import Path

import torch

from ikmlib import config
from ikmlib.files import load_torch, read_csv
from ikmlib.models import SRNetwork
from ikmlib.networks import load, write
from ikmlib.study.records import Run, default_device, read_record

SHIPPED = config.ROOT / "results" / "weights"   # used where the folder of weights has none


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
    state = {name: tensor.to("cpu", torch.float16 if half else torch.float32).contiguous()
             for name, tensor in load_torch(local, record["id"])["model"].items()}
    scores = read_csv(local.with_name("scores.csv")).groupby("set")
    record["scores"] = {name: {"images": len(of), "psnr_y": round(of.psnr_y.mean(), 4),
                               "ssim_y": round(of.ssim_y.mean(), 5)} for name, of in scores}
    target = folder() / f"{record['id']}.safetensors"
    write(target, state, record)
    return target


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


def best(scale: int) -> Path:
    """The best weights for a scale of `folder()` or, if that has none, of SHIPPED: of the largest profile, scored on
    most images, with the highest PSNR. Raises FileNotFoundError if neither has any, and as `load` does."""
    for where in (folder(), SHIPPED):
        ranked = []
        for path in where.glob("*.safetensors"):
            record = load(path)[1]
            sets = record.get("scores", {}).values()   # a network of one's own has none
            if sets and record["spec"]["scale"] == scale:
                known = record["profile"] in config.PROFILES and list(config.PROFILES).index(record["profile"])
                ranked.append((known, sum(s["images"] for s in sets),
                               sum(s["images"] * s["psnr_y"] for s in sets), path))
        if ranked:
            return max(ranked)[-1]
    raise FileNotFoundError(f"no weights for x{scale} in {folder()} and {SHIPPED}: train a network and run `python -m "
                            "ikmlib weights export RUN_FOLDER`, or name a file with --weights")
