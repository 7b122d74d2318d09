"""Trained networks to keep and to use: `results/weights/<run id>.safetensors`. The header of a file holds the record of
its run, the scores, and a sha256 of all that is in the file."""
from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

from ikmlib import config
from ikmlib.files import load_torch, read_csv, reading, write_bytes
from ikmlib.models import SRNetwork
from ikmlib.study.records import Run, default_device, read_record

METADATA = "ikmlib"   # one key: safetensors writes several in any order


def folder() -> Path:
    """Where weights are kept: `weights/` below the folder of all records."""
    return config.results_root() / "weights"


def _digest(record: dict, state: dict[str, Tensor]) -> str:
    total = hashlib.sha256(json.dumps({**record, "sha256": ""}, sort_keys=True).encode())
    for name, tensor in sorted(state.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode() + tensor.numpy().tobytes())
    return total.hexdigest()


def path(run: Run) -> Path:
    """Where a run's weights are kept."""
    return folder() / f"{run.id}.safetensors"


def export(run_folder: str | Path, half: bool = False) -> Path:
    """Write the weights of the finished run in `run_folder` to `folder()`, in float32 or `half` precision; the file.

    Raises FileNotFoundError if the run is not finished or its `weights.pt` is not on this machine.
    """
    from safetensors.torch import save

    record, local = read_record(Path(run_folder)), Path(run_folder, "weights.pt")
    if not local.exists():
        raise FileNotFoundError(f"{run_folder} has no weights.pt: weights are exported where the run was trained")
    state = {name: tensor.to("cpu", torch.float16 if half else torch.float32).contiguous()
             for name, tensor in load_torch(local, record["id"])["model"].items()}
    scores = read_csv(local.with_name("scores.csv")).groupby("set")
    record["scores"] = {name: {"images": len(of), "psnr_y": round(of.psnr_y.mean(), 4),
                               "ssim_y": round(of.ssim_y.mean(), 5)} for name, of in scores}
    record["sha256"] = _digest(record, state)
    target = folder() / f"{record['id']}.safetensors"
    write_bytes(target, save(state, {METADATA: json.dumps(record, sort_keys=True)}))
    return target


def load(path: str | Path) -> tuple[SRNetwork, dict]:
    """The network of a weights file, in float32 and evaluation mode, and its record with `scores`: set -> images,
    psnr_y (dB), ssim_y. They are those of the run, whose weights were float32, also where the file has half of it.

    Raises OSError, and ValueError for a file that is damaged, was changed, or holds no network of this project.
    """
    from safetensors import safe_open

    path = Path(path)
    with open(path, "rb"), reading(path), safe_open(path, "pt") as file:   # open, so that a missing file is an OSError
        record = json.loads((file.metadata() or {})[METADATA])
        state = {name: file.get_tensor(name) for name in file.keys()}
        if record["sha256"] != _digest(record, state):
            raise ValueError("its sha256 is not that of its record and tensors")
        model = Run.from_record(record).build()
        model.load_state_dict(state)   # strict: missing and unexpected keys and wrong shapes are errors
        if not all(tensor.isfinite().all() for tensor in state.values()):
            raise ValueError("numbers that are not finite")
    return model.eval(), record


def trained_network(run: Run) -> SRNetwork | None:
    """The network of a finished run on the default device, in evaluation mode; None if its weights are not at hand.

    Raises UnreadableCheckpoint or ValueError for a damaged file.
    """
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
    """The weights for a scale that have the highest PSNR on Set5; those that were not scored on it come last.

    Raises FileNotFoundError if there are none, and as `load` does.
    """
    records = {file: load(file)[1] for file in folder().glob("*.safetensors")}
    fitting = [file for file, record in records.items() if record["spec"]["scale"] == scale]
    if not fitting:
        raise FileNotFoundError(f"no weights for x{scale} in {folder()}: train a network and run `python -m ikmlib "
                                "weights export RUN_FOLDER`, or name a file with --weights")
    return max(fitting, key=lambda file: records[file]["scores"].get("Set5", {"psnr_y": 0})["psnr_y"])
