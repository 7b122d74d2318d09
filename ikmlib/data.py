"""From images to mini-batches: MATLAB's imresize, the training/validation split, and the patch sampler."""
import hashlib
import io
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ikmlib import config, datasets
from ikmlib.files import write_bytes
from ikmlib.pictures import read_image

# Every n-th training image, in order of name, is a validation image and never trained on.
VALIDATION_EVERY = {"BSDS500": 40, "DIV2K": 80}
VALIDATION_CROP = 192   # HR pixels, centre
KEPT_ABOVE = 10**9      # samples of images (pixels times colours) from which on their LR images are kept on disk
# Training images that show a test image: never trained or validated on.
TEST_TWINS = {"BSDS500/train/302003": "Set5's woman at a higher resolution"}


# --- MATLAB's imresize ----------------------------------------------------------------------------------------------


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic kernel, a = -0.5."""
    x = np.abs(x)
    return np.where(x <= 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0.0))


def contributions(size: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """For each output position: the input positions it is made of and their weights, both (output size, taps)."""
    stretch = min(scale, 1.0)   # below 1 the kernel is widened: anti-aliasing
    width = 4 / stretch
    u = (np.arange(int(np.ceil(size * scale - 1e-9))) + 0.5) / scale - 0.5
    index = np.floor(u - width / 2)[:, None].astype(int) + np.arange(int(np.ceil(width)) + 2)
    weights = stretch * _cubic(stretch * (u[:, None] - index))
    weights /= weights.sum(1, keepdims=True)
    index = index % (2 * size)   # symmetric borders: ... 1 0 | 0 1 2 ... n-1 | n-1 n-2 ...
    return np.where(index < size, index, 2 * size - 1 - index), weights


def _resize_rows(image: np.ndarray, scale: float) -> np.ndarray:
    """One pass, over the first axis, rounded to uint8 half away from zero."""
    index, weights = contributions(len(image), scale)
    image = image.astype(np.float64)
    out = np.zeros((len(index), *image.shape[1:]))
    for tap in np.flatnonzero(np.any(weights, axis=0)):
        out += weights[:, tap, None, None] * image[index[:, tap]]
    return np.floor(np.clip(out, 0, 255) + 0.5).astype(np.uint8)


def imresize(image_uint8_hwc: np.ndarray, scale: float) -> np.ndarray:
    """Resize as MATLAB's `imresize(image, scale)` does: bicubic, with anti-aliasing when it shrinks.

    (H, W, C) uint8, any C, -> (ceil(H scale), ceil(W scale), C) uint8; `scale` 1/2 halves, 2 doubles. The height pass
    is rounded to uint8 before the width pass. Raises ValueError for another type or a scale <= 0.

    At 1/2, 1/3 and 1/4 every value equals the files that MATLAB made of Set5 (Set5_LR). Enlarging those by 2 and 4
    gives Set5's bicubic PSNR and SSIM in the paper's Table I to the last digit, if Y is rounded. No other factor was
    compared with MATLAB.
    """
    image = np.asarray(image_uint8_hwc)
    if image.dtype != np.uint8 or image.ndim != 3:
        raise ValueError(f"imresize takes a uint8 image (H, W, C), not {image.dtype} {image.shape}")
    if not np.isfinite(scale) or scale <= 0:
        raise ValueError(f"scale must be positive, not {scale}")
    return _resize_rows(_resize_rows(image, scale).swapaxes(0, 1), scale).swapaxes(0, 1)


def crop_to_multiple(image: np.ndarray, scale: int) -> np.ndarray:
    """The upper left part of (H, W, C) whose height and width are multiples of `scale`."""
    return image[:image.shape[0] // scale * scale, :image.shape[1] // scale * scale]


def centre_crop(image: np.ndarray, size: int) -> np.ndarray:
    """The centre of (H, W, C), at most `size` pixels high and wide."""
    top, left = ((max(n - size, 0)) // 2 for n in image.shape[:2])
    return image[top:top + size, left:left + size]


def to_rgb(image: np.ndarray, name: str = "") -> np.ndarray:
    """uint8 (H, W, 1) or (H, W, 3) -> (H, W, 3). Raises ValueError, with the image's name, for anything else."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ValueError(f"image {name} is {image.dtype} {image.shape}; allowed: uint8 (H, W, 3) and (H, W, 1)")
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image


# --- training and validation images ---------------------------------------------------------------------------------


def split(names: tuple[str, ...]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(training images, validation images) of the named training sets, each "set/image" -> uint8 RGB (H, W, 3).

    Validation images are centre crops of at most VALIDATION_CROP pixels; TEST_TWINS are left out. Raises ValueError if
    a set is a test set, and FileNotFoundError if a set is not installed.
    """
    train, validation = {}, {}
    for name in names:
        if (role := datasets.image_set(name).role) != "train":
            raise ValueError(f"{name} is a {role} set: it must not be trained on")
        for i, (image, pixels) in enumerate(datasets.load(name).items()):
            held_out = name in VALIDATION_EVERY and i % VALIDATION_EVERY[name] == 0
            if f"{name}/{image}" not in TEST_TWINS:
                (validation if held_out else train)[f"{name}/{image}"] = to_rgb(pixels)
    if names == ("embedded-train",):
        validation = {f"embedded-val/{k}": to_rgb(v) for k, v in datasets.load("embedded-val").items()}
    return train, {k: centre_crop(v, VALIDATION_CROP) for k, v in validation.items()}


class _Pixels:
    """Images of any sizes as one flat uint8 tensor on the device, so that a whole mini-batch is one gather."""

    def __init__(self, images: list[np.ndarray], device: torch.device):
        sizes = torch.tensor([image.shape[:2] for image in images])
        self.width = sizes[:, 1].to(device)
        ends = torch.cumsum(sizes.prod(1), 0)
        self.start = (ends - sizes.prod(1)).to(device)
        self.rgb = torch.empty(int(ends[-1]), 3, dtype=torch.uint8, device=device)
        for image, end in zip(images, ends.tolist(), strict=True):   # one by one: DIV2K twice would be 14 GB
            pixels = torch.from_numpy(np.ascontiguousarray(image)).reshape(-1, 3)
            self.rgb[end - len(pixels):end] = pixels

    def crop(self, image: Tensor, top: Tensor, left: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Pixels at (top + rows, left + columns) of each image: image, top, left (B,), rows, columns (B, p, p) ->
        (B, 3, p, p) in 0..1, channels last in memory."""
        width = self.width[image]
        corner = self.start[image] + top * width + left
        index = corner[:, None, None] + rows * width[:, None, None] + columns
        return self.rgb[index].permute(0, 3, 1, 2).float() / 255


def downsampled(images: list[np.ndarray], scale: int) -> list[np.ndarray]:
    """`imresize` of each image by 1 / `scale`. Where they are large, as DIV2K's are, it takes a quarter of an hour, so
    what is made is kept as PNG files in `lr/` of the download cache."""
    if sum(image.size for image in images) < KEPT_ABOVE:
        return [imresize(image, 1 / scale) for image in images]
    small = []
    for image in tqdm(images, f"LR images, x{scale}", delay=2):
        digest = hashlib.sha256(f"{image.shape} x{scale} ".encode() + image.tobytes()).hexdigest()
        path = config.cache_root() / "lr" / f"{digest}.png"
        if not path.exists():
            stream = io.BytesIO()
            Image.fromarray(imresize(image, 1 / scale)).save(stream, "PNG")
            write_bytes(path, stream.getvalue())
        small.append(read_image(path))
    return small


class PatchSampler:
    """Aligned, augmented LR/HR patch pairs cut on the device; batch u is a pure function of (seed, u).

    Every image is equally likely, then every position in it, then each of the 8 flips and rotations. All networks
    trained with one seed see the same batches. `images`: uint8 (H, W, 3) or (H, W, 1) each; `patch`: side of an LR
    patch, pixels. Raises ValueError if there is no image, or one is of another kind or smaller than an HR patch.
    """

    def __init__(self, images: dict[str, np.ndarray], scale: int, patch: int, *, device: torch.device | str = "cpu"):
        if not images:
            raise ValueError("no training images")
        images = {name: to_rgb(image, name) for name, image in images.items()}
        for name, image in images.items():
            if min(image.shape[:2]) < patch * scale:
                raise ValueError(f"image {name} of {image.shape[0]} x {image.shape[1]} pixels is smaller than an HR "
                                 f"patch of {patch * scale} x {patch * scale} ({patch} at x{scale})")
        self.scale, self.patch, self.device = scale, patch, torch.device(device)
        hr = [crop_to_multiple(image, scale) for image in images.values()]
        lr = downsampled(hr, scale)
        self._size = np.array([image.shape[:2] for image in lr])
        self._lr, self._hr = _Pixels(lr, self.device), _Pixels(hr, self.device)

    def draw(self, seed: int, update: int, batch: int) -> Tensor:
        """What mini-batch `update` shows, (6, B) integers on the device: image, top, left (LR pixels), and 0 or 1 for
        transpose, flip rows, flip columns."""
        random = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, update]))
        image = random.integers(len(self._size), size=batch)
        room = self._size[image] - self.patch + 1
        corner = (random.random((batch, 2)) * room).astype(np.int64)
        drawn = torch.from_numpy(np.stack([image, *corner.T, *random.integers(2, size=(3, batch))]))
        if self.device.type == "cuda":
            drawn = drawn.pin_memory()   # from other memory, a copy waits for all that the device has to do
        return drawn.to(self.device, non_blocking=True)

    def _grid(self, side: int, transpose: Tensor, flip_rows: Tensor, flip_columns: Tensor) -> tuple[Tensor, Tensor]:
        """Where each pixel of an augmented side x side patch comes from: rows, columns (B, side, side)."""
        i = torch.arange(side, device=self.device)
        rows, columns = i[None, :, None], i[None, None, :]
        t, fr, fc = (v.bool()[:, None, None] for v in (transpose, flip_rows, flip_columns))
        rows, columns = torch.where(t, columns, rows), torch.where(t, rows, columns)
        return torch.where(fr, side - 1 - rows, rows), torch.where(fc, side - 1 - columns, columns)

    def cut(self, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """The drawn patches: LR (B, 3, p, p) and HR (B, 3, sp, sp), RGB in 0..1."""
        image, top, left, *augmentation = drawn
        s, p = self.scale, self.patch
        return (self._lr.crop(image, top, left, *self._grid(p, *augmentation)),
                self._hr.crop(image, top * s, left * s, *self._grid(p * s, *augmentation)))

    def batch(self, seed: int, update: int, batch: int) -> tuple[Tensor, Tensor]:
        """Mini-batch `update`: `cut` of its `draw`."""
        return self.cut(self.draw(seed, update, batch))


@lru_cache(maxsize=1)   # of one scale: DIV2K takes 9 GB of the device's memory
def training_data(names: tuple[str, ...], scale: int, patch: int,
                  device: str) -> tuple[PatchSampler, dict, tuple[str, ...]]:
    """What a run is trained on: the sampler, the validation images (see `split`), and the names of the training images
    that are left out, which are TEST_TWINS and those smaller than an HR patch.

    `names`: training sets, such as ("T91", "BSDS500"); `scale`: 2, 3 or 4; `patch`: side of an LR patch, pixels;
    `device`: "cpu" or "cuda". The errors are those of `split`. For pictures of your own, make a `PatchSampler` of them.
    """
    train, validation = split(names)
    small = tuple(name for name, image in train.items() if min(image.shape[:2]) < patch * scale)
    twins = tuple(name for name in TEST_TWINS if name.split("/")[0] in names)
    kept = {name: image for name, image in train.items() if name not in small}
    return PatchSampler(kept, scale, patch, device=device), validation, small + twins
