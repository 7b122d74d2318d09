"""Controls without a training of their own: a trained IKM network tested with attention that is not the image's own."""
from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from ikmlib import config
from ikmlib.data import training_data
from ikmlib.fast import keep_memory
from ikmlib.files import read_csv, write_csv, write_text
from ikmlib.layers import IKMConv2d, attending
from ikmlib.metrics import psnr_y
from ikmlib.models import SRNetwork
from ikmlib.study.records import Run, digests, read_record, scored_pairs
from ikmlib.study.weights import trained_network
from ikmlib.trainers import super_resolve

OTHER_ATTENTION = {"frozen": "IKM, frozen at test", "swapped": "IKM, swapped at test"}
FROZEN_BATCHES = 32   # of the run's own training batches, over which attention is averaged


def attention_of(model: SRNetwork, act: Callable[..., object], *args) -> dict[IKMConv2d, Tensor]:
    """Attention of each layer during act(*args), mean over images; without layers whose attention is just a number."""
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
    return lambda layer, own: given[layer] if layer in given else own()


def training_mean(model: SRNetwork, run: Run) -> dict[IKMConv2d, Tensor]:
    """Attention of each layer, mean over FROZEN_BATCHES of the batches that the run was trained on."""
    sampler, _, _ = training_data(run.data, run.scale, run.patch, str(next(model.parameters()).device))
    batches = [attention_of(model, model, sampler.batch(run.seed, u, run.batch)[0])
               for u in range(min(FROZEN_BATCHES, run.updates))]
    return {layer: torch.stack([batch[layer] for batch in batches]).mean(0) for layer in batches[0]}


def other_attention_scores(run: Run) -> pd.DataFrame | None:
    """PSNR on Y (dB) of a finished IKM run with attention that is not the image's own: set, image, frozen, swapped.

    `frozen` is the mean attention of training batches, `swapped` that of the set's next image. Measured once and kept
    in the run's folder as `controls.csv`; None if neither that nor the weights are at hand.
    """
    path = run.folder / "controls.csv"
    if path.exists():
        return read_csv(path)
    if (model := trained_network(run)) is None:
        return None
    keep_memory()
    frozen, rows = training_mean(model, run), []
    for set_name, images in scored_pairs(config.get_profile(run.profile), run.data, run.scale).items():
        following = [*images[1:], images[0]]
        both = list(zip(images, following, strict=True))
        for (name, lr, hr), (_, other, _) in tqdm(both, f"other attention, {set_name}", leave=False, delay=2):
            values = []
            for given in (frozen, attention_of(model, super_resolve, model, other)):
                with attending(model, replaced(given)):
                    values.append(psnr_y(super_resolve(model, lr), hr, shave=run.scale))
            rows.append((set_name, name, *values))
    write_csv(path, pd.DataFrame(rows, columns=["set", "image", *OTHER_ATTENTION]))
    record = read_record(run.folder)
    write_text(run.folder / "run.json", json.dumps(record | {"files": digests(run.folder)}, indent=1) + "\n")
    return other_attention_scores(run)
