"""Large images in bounded memory: the network band by band, with the whole image's attention.

A convolution needs a few rows around a band; attention, IKM's or CA's, needs the whole image. Both take what they need
through adaptive average pooling. So each of the network's steps (see `models.whole`) is run over the bands of its input
again and again: a run stops where a pooling's result is not known yet and adds its band's share to it; after the last
band that result is known, and the next run comes further. The run that knows all of them writes the output. With the
released settings a dense unit has one pooling, of its input, so nothing is convolved twice.
"""
from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.utils import _ntuple
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from .models import SRNetwork

MAPS = 10   # feature maps that are alive at once, at most: RDB's seven, and the head's, a step's input and output


class _Unknown(Exception):
    """A pooling's result over the whole image is not known yet."""


class _Map:
    """A feature map, kept (H, W, C), in memory or in a file that is there as long as the map."""

    def __init__(self, height: int, width: int, channels: int, dtype: np.dtype, on_disk: bool):
        self.shape, self.dtype = (height, width, channels), dtype
        self._memory = None if on_disk else np.empty(self.shape, dtype)
        self._file = tempfile.TemporaryFile() if on_disk else None
        if on_disk:
            os.posix_fallocate(self._file.fileno(), 0, int(np.prod(self.shape)) * dtype.itemsize)   # no room: OSError

    def _rows(self) -> np.ndarray:
        """All rows; a file is mapped anew each time, for what is not mapped takes no memory."""
        return np.memmap(self._file, self.dtype, "r+", shape=self.shape) if self._file else self._memory

    def read(self, top: int, bottom: int) -> Tensor:
        """Rows as (1, C, rows, W), channels last in memory."""
        return torch.from_numpy(np.array(self._rows()[top:bottom])).permute(2, 0, 1)[None]

    def write(self, top: int, band: Tensor) -> None:
        self._rows()[top:top + band.shape[2]] = band[0].permute(1, 2, 0).cpu().numpy()


class _WholeImage(TorchFunctionMode):
    """While active, adaptive average pooling of a band is that of the whole image, or raises _Unknown.

    `known`: results in the order in which a step asks for them, which is the same in all bands.
    """

    def __init__(self, height: int):
        super().__init__()
        self.height, self.known, self.sums = height, [], None

    def next_run(self) -> None:
        """All bands have been seen: what they add up to is one more known result."""
        self.known += [] if self.sums is None else [self.sums]
        self.sums = None

    def next_band(self, crop: int, top: int, bottom: int) -> None:
        """What comes is of an image whose first row is `crop`; its rows top to bottom - 1 count."""
        self.rows, self.top, self.asked = slice(top - crop, bottom - crop), top, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.adaptive_avg_pool2d:
            return func(*args, **(kwargs or {}))
        x, size = args
        if self.asked < len(self.known):
            self.asked += 1
            return self.known[self.asked - 1].to(x.dtype)
        self._add(x[:, :, self.rows], _ntuple(2)(size))
        raise _Unknown

    def _add(self, x: Tensor, size: tuple[int, int]) -> None:
        """Add these rows' share to the cells' means; neighbouring cells share a row where k does not divide H."""
        if self.sums is None:
            self.sums = torch.zeros(*x.shape[:2], *size, dtype=torch.float64, device=x.device)
        for u, (top, bottom) in enumerate(_cells(self.height, size[0])):
            part = x[:, :, max(top - self.top, 0):max(bottom - self.top, 0)]
            for v, (left, right) in enumerate(_cells(x.shape[3], size[1])):
                area = (bottom - top) * (right - left)
                self.sums[:, :, u, v] += part[..., left:right].sum((2, 3), dtype=torch.float64) / area


def _cells(length: int, cells: int) -> Iterator[tuple[int, int]]:
    """First and last + 1 position of each cell of adaptive pooling."""
    return ((length * i // cells, -(-length * (i + 1) // cells)) for i in range(cells))


def _convs(modules: nn.Module) -> list[nn.Conv2d]:
    return [module for module in modules.modules() if isinstance(module, nn.Conv2d)]


def _pixel_bytes(modules: nn.Module, scale: int) -> int:
    """What computing takes for each input pixel: three times its widest convolution's input and output."""
    return 12 * max(conv.in_channels + conv.out_channels for conv in _convs(modules)) * max(1, scale**2 // 4)


def _band_rows(modules: nn.Module, scale: int, width: int, halo: int, max_bytes: int) -> int:
    """Rows whose step takes about max_bytes."""
    return max(8, max_bytes // (width * _pixel_bytes(modules, scale)) - 2 * halo)


def _bands(function: Callable[[Tensor], Tensor], x: _Map | list[_Map], skip: _Map | None = None,
           modules: nn.Module | None = None, *, max_bytes: int, on_disk: bool, bar: tqdm) -> _Map:
    """`models.whole` on feature maps that are kept: the output of one step."""
    modules, inputs = modules or function, x if isinstance(x, list) else [x]
    height, width, _ = inputs[0].shape
    scale = math.prod(module.upscale_factor for module in modules.modules() if isinstance(module, nn.PixelShuffle))
    halo = sum(conv.padding[0] for conv in _convs(modules))   # as many rows as the output depends on, or more
    rows = _band_rows(modules, scale, width, halo, max_bytes)
    output, whole, device = None, _WholeImage(height), next(modules.parameters()).device
    while output is None:
        whole.next_run()
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            crop = max(top - halo, 0), min(bottom + halo, height)
            whole.next_band(crop[0], top, bottom)
            band = torch.cat([each.read(*crop).to(device) for each in inputs], 1)
            try:
                with whole:
                    y = function(band)[:, :, scale * (top - crop[0]):scale * (bottom - crop[0])]
            except _Unknown:
                continue
            if skip is not None:
                y = y + skip.read(top, bottom).to(device)
            output = output or _Map(scale * height, scale * width, y.shape[1], inputs[0].dtype, on_disk)
            output.write(scale * top, y)
            bar.update(bottom - top)
    return output


def available_bytes(device: torch.device) -> int:
    """Memory that can be had on a device now; 2 GiB where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as file:
            return next(1024 * int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 2 << 30


def whole_bytes(model: SRNetwork, height: int, width: int) -> int:
    """Memory that an LR image takes at once, about."""
    return height * width * (_pixel_bytes(model, model.scale) + 4 * MAPS * model.arch.channels)


def in_bands(model: SRNetwork, x: Tensor, *, max_bytes: int = 2 << 30, show: bool = True) -> Tensor:
    """model(x) of one image, (1, 3, h, w) in 0..1 -> (1, 3, s h, s w) on the CPU, to rounding, in about `max_bytes`.

    Half of `max_bytes` is for feature maps, which go to files in the temporary folder (TMPDIR) if they do not fit, and
    half for what is computed of a band; x and the result are extra. Bands have at least 8 rows. Raises ValueError for
    more than one image, and for a median threshold, which is no average.
    """
    if x.dim() != 4 or x.shape[:2] != (1, 3):
        raise ValueError(f"expected one image (1, 3, h, w), not {tuple(x.shape)}")
    if model.arch.attention == "ikm" and model.arch.tau == "median":
        raise ValueError("the threshold tau 'median' cannot be found band by band; allowed: a number, 'mean'")
    (height, width), mean, std = x.shape[2:], model.mean.cpu(), model.std.cpu()
    dtype = mean.numpy().dtype
    on_disk = MAPS * height * width * model.arch.channels * dtype.itemsize > max_bytes // 2
    maps = _Map(height, width, 3, dtype, on_disk)
    maps.write(0, (x.to(mean) - mean) / std)
    with torch.no_grad(), tqdm(total=height * _steps(model), desc="super-resolution", unit="row", disable=not show,
                               leave=False) as bar:
        y = model.normalised(maps, partial(_bands, max_bytes=max_bytes // 2, on_disk=on_disk, bar=bar))
    return y.read(0, y.shape[0]) * std + mean


def _steps(model: SRNetwork) -> int:
    """How many steps the network has."""
    steps: list[tuple] = []
    model.normalised(None, lambda *step, **options: steps.append(step))
    return len(steps)
