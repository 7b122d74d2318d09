"""Training that can be stopped at any instant and continued to the identical result, and evaluation."""
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ikmlib import datasets
from ikmlib.config import require
from ikmlib.data import PatchSampler, crop_to_multiple, imresize, to_rgb
from ikmlib.fast import Captured
from ikmlib.files import load_torch, reading, save_torch
from ikmlib.metrics import RGB_TO_Y, psnr_y, ssim_y
from ikmlib.models import RGB_STD
from ikmlib.pictures import read_image

SAVE_EVERY = 30.0      # seconds between checkpoints
CHECK_EVERY = 25       # updates between looks at the loss on a GPU, where a look waits for the device
DIVERGED = 5.0         # times its lowest level, at which the smoothed loss stops a run


class TrainingDiverged(RuntimeError):
    """The loss became NaN, infinite, or many times larger than it was."""


# --- evaluation -----------------------------------------------------------------------------------------------------


class NotFinite(ValueError):
    """A network returned NaN or infinity."""


def _forward(model: nn.Module, x: Tensor, scale: int | None) -> Tensor:
    """RGB (1, 3, h, w) -> (1, 3, s h, s w), both float32, by a network in evaluation mode and its own precision."""
    like = next((p for p in chain(model.parameters(), model.buffers()) if p.is_floating_point()), torch.empty(0))
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            y = model(x.to(like).contiguous(memory_format=torch.channels_last))
    finally:
        for module, training in modes:
            module.training = training
    if not isinstance(y, Tensor):
        raise ValueError(f"the network returned a {type(y).__name__}, not one tensor")
    s = scale or (max(y.shape[2] // x.shape[2], 1) if y.ndim == 4 else 1)
    expected = (1, 3, s * x.shape[2], s * x.shape[3])
    if y.shape != expected:
        raise ValueError(f"the network returned {tuple(y.shape)} for {tuple(x.shape)}, not {expected}: x{s} of RGB")
    return y.float()


def super_resolve(model: nn.Module, lr_uint8: np.ndarray, scale: int | None = None) -> np.ndarray:
    """One image through the network: uint8 (h, w, 3) -> uint8 (s h, s w, 3), clipped and rounded.

    The network gets RGB (1, 3, h, w) in 0..1, in the precision of its parameters, and runs in evaluation mode. Raises
    ValueError for another image, and for a network that does not return (1, 3, s h, s w), where s is `scale` or, by
    default, any whole number; NotFinite if it returns NaN or infinity.
    """
    if lr_uint8.dtype != np.uint8 or lr_uint8.ndim != 3 or lr_uint8.shape[2] != 3:
        raise ValueError(f"a network takes an image uint8 (h, w, 3), not {lr_uint8.dtype} {lr_uint8.shape}")
    x = torch.from_numpy(np.ascontiguousarray(lr_uint8)).permute(2, 0, 1)[None].float() / 255
    y = _forward(model, x, scale)[0]
    if not y.isfinite().all():
        raise NotFinite("the network returned numbers that are not finite")
    return (y.permute(1, 2, 0).clamp(0, 1) * 255).round().byte().cpu().numpy()


def check_network(model: nn.Module, scale: int) -> None:
    """Raise ValueError for a network that `super_resolve` refuses at this scale, or that takes and returns colours of
    0..255 in place of 0..1, as EDSR's published ones do: its result for a smooth probe of 48 x 48 pixels is far from
    the probe in 0..1, but right in 0..255. (Some untrained networks that add a residual with biases to an interpolated
    image are refused, too.)"""
    ramp = torch.arange(0, 120, 2.5) / 255
    probe = (ramp[:, None] + ramp).expand(1, 3, 48, 48)
    try:
        found = [F.avg_pool2d(_forward(model, white * probe, scale).cpu() / white, scale) for white in (1, 255)]
    except RuntimeError as error:   # of torch
        raise ValueError(f"the network does not take RGB (1, 3, 48, 48): {error}") from error
    if not found[0].isfinite().all():
        raise NotFinite("the network returned numbers that are not finite")
    off, off_of_255 = (255 * (y.clamp(0, 1) - probe).abs().mean() for y in found)   # levels
    if off > 2.5 and off_of_255 < 0.7:
        raise ValueError(f"the network is {off:.0f} levels off, but right if colours are 0..255, where 0..1 is "
                         "expected: train it, or wrap it in one that returns network(255 * x) / 255")


Pair = tuple[str, np.ndarray, np.ndarray]   # name, LR, HR


def pairs(hr_images: Mapping[str, np.ndarray], scale: int) -> Iterator[Pair]:
    """(name, LR, HR) of each image, uint8 RGB: HR cropped to a multiple of `scale`, and its MATLAB-downsampled LR.

    `hr_images`: name -> uint8 (H, W, 3) or (H, W, 1). A grey image is treated as RGB. Raises ValueError, with the
    image's name, for anything else.
    """
    for name, image in hr_images.items():
        hr = crop_to_multiple(to_rgb(image, name), scale)
        yield name, imresize(hr, 1 / scale), hr


def evaluate(model: nn.Module, hr_images: Mapping[str, np.ndarray] | Sequence[np.ndarray | str | Path] | str | Path,
             scale: int) -> pd.DataFrame:
    """Scores of a network on HR images, `scale` pixels shaved: rows of image, psnr_y (dB), ssim_y.

    `hr_images`: what `pairs` takes, a list of picture files, or a folder of pictures or a set as `datasets.image_set`
    knows them. Every image goes through the network whole. Raises ValueError as `pairs`, `check_network` and
    `read_image` do, and for an image that is too small for SSIM; FileNotFoundError for a set that is not installed.
    """
    check_network(model, scale)
    if isinstance(hr_images, (str, Path)):
        name = str(hr_images)
        hr_images = datasets.load(name) if name in datasets.SETS else datasets.paths(name)
    elif not isinstance(hr_images, Mapping):
        hr_images = {str(i if isinstance(image, np.ndarray) else image): image for i, image in enumerate(hr_images)}
    rows, least = [], scale * math.ceil((11 + 2 * scale) / scale)   # shaved, SSIM's window of 11 x 11 fits into it
    for name, image in tqdm(hr_images.items(), "scores", delay=2, leave=False, disable=None):
        image = read_image(image) if isinstance(image, (str, Path)) else image
        for _, lr, hr in pairs({name: image}, scale):
            if min(hr.shape[:2]) < least:
                raise ValueError(f"image {name} of {image.shape[0]} x {image.shape[1]} pixels is too small to be "
                                 f"scored at x{scale}; allowed: at least {least} x {least}")
            sr = super_resolve(model, lr, scale)
            rows.append((name, psnr_y(sr, hr, shave=scale), ssim_y(sr, hr, shave=scale)))
    return pd.DataFrame(rows, columns=["image", "psnr_y", "ssim_y"])


def mean_psnr(model: nn.Module, images: Iterable[Pair], scale: int) -> float:
    """Mean PSNR on Y of a network over `pairs`, dB, `scale` pixels shaved. Raises TrainingDiverged if the network
    returns NaN or infinity."""
    try:
        return float(np.mean([psnr_y(super_resolve(model, lr, scale), hr, shave=scale) for _, lr, hr in images]))
    except NotFinite as error:
        raise TrainingDiverged(str(error)) from error


# --- training -------------------------------------------------------------------------------------------------------


@dataclass
class Progress:
    """What a run has done so far. `curve` rows: update, loss (mean since last row), psnr_y (validation), seconds."""

    update: int = 0
    curve: list[dict] = field(default_factory=list)
    seconds: float = 0.0
    smoothed: float | None = None    # exponential mean of the loss
    lowest: float = float("inf")     # of `smoothed`
    total: float = 0.0               # loss summed since the last row of the curve
    stretches: list[list] = field(default_factory=list)   # [first update, on what it was trained from there on]


SCHEDULES = ("halving", "cosine")
WARM_UP = 0.05   # share of the updates in which the cosine schedule's rate grows


def learning_rate(initial: float, update: int, updates: int, schedule: str = "halving") -> float:
    """Rate of update 0, 1, ..., `updates` - 1.

    "halving"   halved after each third of the run, as the released code does every 100 k of 300 k updates
    "cosine"    grows linearly to `initial` over the first 5 % of the updates, then falls to 0 along half a cosine
                (not in the paper)
    Raises ValueError for another schedule.
    """
    require("schedule", schedule, SCHEDULES)
    if schedule == "halving":
        return initial * 0.5 ** (3 * update // updates)
    warm = max(1, round(WARM_UP * updates))
    if update < warm:
        return initial * (update + 1) / warm
    return initial * 0.5 * (1 + math.cos(math.pi * (update - warm) / (updates - warm)))


def mae(sr: Tensor, hr: Tensor, std: Tensor) -> Tensor:
    """Mean absolute error of normalised RGB (Eq. 20)."""
    return ((sr - hr).abs() / std).mean()


def mae_y(sr: Tensor, hr: Tensor, std: Tensor) -> Tensor:
    """Mean absolute error of luma, for networks of luma. An error of `std` in all three colours is 1, as in `mae`."""
    error, unit = (sum(weight * colour for weight, colour in zip(RGB_TO_Y, x.unbind(-3), strict=True))
                   for x in (sr - hr, std))
    return (error.abs() / unit).mean()


def _learn(model: nn.Module, sampler: PatchSampler, optimizer: torch.optim.Optimizer,
           loss_of: Callable[[Tensor, Tensor], Tensor], drawn: Tensor) -> Tensor:
    """One update, all on the device; returns the loss."""
    lr, hr = sampler.cut(drawn)
    loss = loss_of(model(lr), hr)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


class Trainer:
    """One run: a model, its batches and its schedule; `fit` continues from the checkpoint if there is one.

    `model`: any module on the sampler's device that takes RGB (B, 3, h, w) in 0..1 and returns (B, 3, s h, s w);
    `updates`: steps of Adam, each on `batch` patches; `rate`: the largest learning rate; `checkpoint`: the file of the
    run's state; `validate`: the model -> PSNR in dB, as `mean_psnr` gives it, asked for `validations` times.

    `key` names the run inside its checkpoint: with another model, other patches or another length, give another key or
    file, because what a checkpoint says is done is not done again. `schedule`: see `learning_rate`; `loss`: `mae` or
    `mae_y`; `reverse` shows the images of every batch in reverse order: the same mathematics, summed in another order;
    `where` says on what it is trained (machine, versions, commit), and is kept in `progress.stretches` when it changes.
    Batches depend on (seed, update) alone and Adam's state is saved, so an interrupted run ends with the same bits as
    an uninterrupted one (same CPU, versions and number of threads; a GPU may sum in another order each time). Raises
    ValueError for a checkpoint that is damaged, another run's, or lacks a part.
    """

    def __init__(self, model: nn.Module, sampler: PatchSampler, *, key: str, seed: int, updates: int, batch: int,
                 checkpoint: Path, validate: Callable[[nn.Module], float], validations: int = 10, rate: float = 2e-4,
                 schedule: str = "halving", reverse: bool = False, loss: Callable[..., Tensor] = mae,
                 where: Mapping[str, str] | None = None):
        self.model = model.to(memory_format=torch.channels_last)
        self.sampler, self.key, self.seed, self.updates, self.batch = sampler, key, seed, updates, batch
        self.checkpoint, self.validate = checkpoint, validate
        self.rate, self.schedule, self.reverse = rate, schedule, reverse
        self.validation_updates = {round(updates * (i + 1) / validations) for i in range(validations)}
        gpu = sampler.device.type == "cuda"   # there the rate is on the device, where a captured update sees it change
        self.optimizer = torch.optim.Adam(model.parameters(), capturable=gpu, fused=gpu or None,
                                          lr=torch.tensor(rate, device=sampler.device) if gpu else rate)
        std = torch.tensor(RGB_STD, device=sampler.device).reshape(3, 1, 1)
        learn = partial(_learn, self.model, sampler, self.optimizer, partial(loss, std=std))
        self._update = Captured(learn) if gpu else learn
        self.check_every = CHECK_EVERY if gpu else 1
        self.progress = Progress()
        self._unchecked: list[Tensor] = []   # losses still on the device
        if checkpoint.exists():
            state = load_torch(checkpoint, key, sampler.device)
            with reading(checkpoint):
                self.model.load_state_dict(state["model"])
                options = self.optimizer.state_dict()["param_groups"]   # this device's, not those of where it was saved
                self.optimizer.load_state_dict({**state["optimizer"], "param_groups": options})
                self.progress = Progress(**state["progress"])
        stretches, here = self.progress.stretches, dict(where or {})
        if self.progress.update < updates and (not stretches or stretches[-1][1] != here):
            stretches.append([self.progress.update, here])

    def save(self) -> None:
        """Write the checkpoint, unless a parameter is not finite: the file always holds a good state."""
        if all(torch.isfinite(p).all() for p in self.model.parameters()):
            save_torch({"key": self.key, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
                        "progress": vars(self.progress)}, self.checkpoint)

    def step(self) -> Tensor:
        """One update; returns the loss (on the device)."""
        rate = learning_rate(self.rate, self.progress.update, self.updates, self.schedule)
        group, = self.optimizer.param_groups
        group["lr"] = group["lr"].fill_(rate) if isinstance(group["lr"], Tensor) else rate
        drawn = self.sampler.draw(self.seed, self.progress.update, self.batch)
        return self._update(drawn.flip(1) if self.reverse else drawn)

    def _check(self) -> None:
        """Take the losses not yet looked at into the running figures; raise TrainingDiverged if they are bad."""
        p, losses, self._unchecked = self.progress, self._unchecked, []
        for loss in torch.stack(losses).double().tolist() if losses else ():
            p.total += loss
            p.smoothed = loss if p.smoothed is None else 0.95 * p.smoothed + 0.05 * loss
            p.lowest = min(p.lowest, p.smoothed)
            if not p.smoothed < DIVERGED * p.lowest:   # also true for NaN
                raise TrainingDiverged(f"run {self.key}: loss {loss:.4g} near update {p.update} (smoothed "
                                       f"{p.smoothed:.4g}, lowest {p.lowest:.4g}); stopped")

    def fit(self, *, deadline: float = math.inf, show: bool = True) -> bool:
        """Train to the end, or until `deadline` (time.monotonic()); True if the run is complete.

        A checkpoint is written every SAVE_EVERY seconds: that much, at most, is trained again after Ctrl-C or a kill.
        Raises TrainingDiverged.
        """
        p, saved = self.progress, time.monotonic()
        if not self.checkpoint.exists():
            self.save()
        self.model.train()
        with tqdm(total=self.updates, initial=p.update, desc=self.key, unit="upd", disable=not show,
                  mininterval=1.0, leave=False) as bar:
            while p.update < self.updates and time.monotonic() < deadline:
                self._advance()
                if p.curve and p.curve[-1]["update"] == p.update:
                    bar.set_postfix_str(f"{p.curve[-1]['psnr_y']:.2f} dB")
                if not self._unchecked and time.monotonic() - saved > SAVE_EVERY:
                    self.save()
                    saved = time.monotonic()
                bar.update()
        self._check()
        self.save()
        return p.update >= self.updates

    def _advance(self) -> None:
        """One update, its bookkeeping and, where due, a point of the validation curve."""
        p, start = self.progress, time.monotonic()
        self._unchecked.append(self.step())
        p.update += 1
        due = p.update in self.validation_updates
        if due or len(self._unchecked) >= self.check_every:
            self._check()
        p.seconds += time.monotonic() - start
        if due:
            since = p.update - (p.curve[-1]["update"] if p.curve else 0)
            p.curve.append({"update": p.update, "loss": p.total / since, "psnr_y": self.validate(self.model),
                            "seconds": p.seconds})
            p.total = 0.0
