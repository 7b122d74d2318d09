"""Scoring as a step of its own. Where the weights of a finished run are on this machine, `score` measures what its
record lacks: test sets that were installed later, and PSNR with attention that is not the image's own."""
from collections.abc import Callable, Mapping

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from ikmlib import datasets, files
from ikmlib.config import PROFILES
from ikmlib.data import training_data
from ikmlib.fast import keep_memory
from ikmlib.layers import IKMConv2d, attending
from ikmlib.metrics import psnr_y
from ikmlib.models import ARCHITECTURES, SRNetwork
from ikmlib.study import records
from ikmlib.study.records import Run
from ikmlib.study.weights import trained_network
from ikmlib.trainers import Pair, super_resolve

OTHER_ATTENTION = {"frozen": "IKM, frozen at test", "swapped": "IKM, swapped at test"}
FROZEN_BATCHES = 32   # of the run's own training batches, over which attention is averaged


def attention_of(model: SRNetwork, act: Callable[..., object], *args) -> dict[IKMConv2d, Tensor]:
    """The attention of each layer during act(*args), mean over images; layers whose attention is one number are left
    out."""
    found: dict[IKMConv2d, Tensor] = {}

    def watch(layer, own):
        attention = own()
        if isinstance(attention, Tensor):
            found[layer] = attention.mean(0, keepdim=True)
        return attention

    with attending(model, watch), torch.no_grad():
        act(*args)
    return found


def replaced(given: Mapping[IKMConv2d, Tensor]) -> Callable:
    """What `attending` takes to give these layers this attention, and the others their own."""
    return lambda layer, own: given.get(layer)


def training_mean(model: SRNetwork, run: Run) -> dict[IKMConv2d, Tensor]:
    """The attention of each layer, mean over FROZEN_BATCHES of the batches that the run was trained on."""
    sampler, _, _ = training_data(run.data, run.scale, run.patch, str(records.default_device()))
    batches = [attention_of(model, model, sampler.batch(run.seed, u, run.batch)[0])
               for u in range(min(FROZEN_BATCHES, run.updates))]
    return {layer: torch.stack([batch[layer] for batch in batches]).mean(0) for layer in batches[0]}


def other_attention(model: SRNetwork, frozen: Mapping[IKMConv2d, Tensor], images: list[Pair]) -> pd.DataFrame:
    """A row an image of a test set: PSNR on Y (dB) of an IKM network with frozen and with swapped attention.

    `frozen`: the attention that every image gets, see `training_mean`; `swapped` is that of the set's next image.
    """
    rows, scale = [], model.scale
    for (name, lr, hr), (_, other, _) in zip(images, [*images[1:], images[0]], strict=True):
        values = []
        for given in (frozen, attention_of(model, super_resolve, model, other)):
            with attending(model, replaced(given)):
                values.append(psnr_y(super_resolve(model, lr), hr, shave=scale))
        rows.append((name, *values))
    return pd.DataFrame(rows, columns=["image", *OTHER_ATTENTION])


def tested_otherwise(run: Run) -> bool:
    """Whether a run is one of those that notebook 12 tests with other attention: Table III's U-HDB and RB with IKM."""
    profile = PROFILES[run.profile]
    return run == Run.of(profile, run.arch, run.seed) and run.arch in (ARCHITECTURES["uhdb"], ARCHITECTURES["rb"])


def score(run: Run) -> None:
    """Score a finished run on what its record does not list yet, test set by test set, if its weights are at hand.

    `scores_<set>.csv` holds the scores of a test set that was installed after the training. `controls_<set>.csv` (set,
    image, frozen, swapped) holds those of `other_attention`, if the run is `tested_otherwise`. `run.json` lists a file,
    with a digest of the set's images, once it is complete, so that a step that was cut off is done again.
    """
    profile = PROFILES[run.profile]
    with files.locked(run.folder / ".lock", wait=False) as mine:
        if not (mine and run.finished):
            return
        record = records.read_record(run.folder)
        kinds = ("scores", "controls") if tested_otherwise(run) else ("scores",)
        known = {(kind, name) for kind in kinds for file in record["files"] if file.startswith(kind)
                 for name in files.read_csv(run.folder / file)["set"]}
        todo = [(kind, name) for kind in kinds for name in records.installed_sets(profile) if (kind, name) not in known]
        model = trained_network(run) if todo else None
        if model is None:
            return
        keep_memory()
        frozen = training_mean(model, run) if todo[-1][0] == "controls" else {}
        for kind, name in tqdm(todo, f"{run.id}: scoring", leave=False, delay=2):
            images = records.scored_pairs(profile, run.scale)[name]
            table = (records.scores_of(model, images, run.scale) if kind == "scores" else
                     other_attention(model, frozen, images))
            table.insert(0, "set", name)
            files.write_csv(run.folder / f"{kind}_{name}.csv", table)
            record["files"][f"{kind}_{name}.csv"] = files.sha256(run.folder / f"{kind}_{name}.csv")
            record["pixels_sha256"] = record.get("pixels_sha256", {}) | {name: datasets.pixels_sha256(name)}
            records.write_record(run, record)


def other_attention_scores(run: Run) -> pd.DataFrame | None:
    """What `score` measured of a run with other attention, in dB: set, image, frozen, swapped; None if nothing."""
    tables = [files.read_csv(path) for path in sorted(run.folder.glob("controls*.csv"))]
    return pd.concat(tables, ignore_index=True) if tables else None
