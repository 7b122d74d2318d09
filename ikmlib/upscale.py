"""A trained network on pictures as people have them: `python -m ikmlib upscale IN... -o OUT --scale 2`.

Results are PNG files: lossless, with transparency, colour profile and, for pictures of 16 bits, 16 bits. The network
works on floating-point RGB of the stored values. A grey picture stays grey; transparency is enlarged on its own, by
bicubic interpolation; a rotation noted by the camera is applied. CMYK becomes RGB, through its profile if it has one.
"""
from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor, nn
from tqdm import tqdm

from . import config, study, tiling, weights
from .files import write_bytes
from .models import SRNetwork

# Pillow's modes: grey, with transparency, and all that are read (8 bits; 16 bits)
GREY, ALPHA = ("1", "L", "LA", "La"), ("LA", "La", "PA", "RGBA", "RGBa")
READABLE = (*GREY, "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"), ("I;16", "I;16L", "I;16B", "RGB", "RGBA")


@dataclass(frozen=True)
class Picture:
    """A decoded picture: `colour` float32 (H, W, 3) or grey (H, W, 1), `alpha` float32 (H, W) or None, all in 0..1."""

    colour: np.ndarray
    alpha: np.ndarray | None = None
    bits: int = 8                # 8 or 16 a sample
    profile: bytes | None = None   # ICC

    @property
    def channels(self) -> np.ndarray:
        """All channels as integers of `bits`: uint8 or uint16 (H, W, 1..4)."""
        values = self.colour if self.alpha is None else np.dstack([self.colour, self.alpha])
        return np.rint(values.clip(0, 1) * (2**self.bits - 1)).astype(np.uint8 if self.bits == 8 else np.uint16)


# --- reading --------------------------------------------------------------------------------------------------------


def read(path: str | os.PathLike) -> Picture:
    """Decode a picture in any format that Pillow knows.

    Raises FileNotFoundError; ValueError for what is no picture, is damaged, has several frames (a phone's MPO, a JPEG
    with a preview, has one), or has samples of more than 16 bits or in floating point.
    """
    data = Path(path).read_bytes()
    try:
        image = Image.open(io.BytesIO(data))
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        bits = _bits(image)
        image.load()
        image = ImageOps.exif_transpose(image)
        low = _low_bytes(data) if bits == 16 and image.mode in ("RGB", "RGBA") else None
        known = image.mode in dict(zip((8, 16), READABLE, strict=True)).get(bits, ())
        picture = _picture(image, low) if known else None
    except UnidentifiedImageError as error:
        raise ValueError("no picture, or of a format that Pillow does not know") from error
    except Exception as error:   # Pillow raises many kinds on damaged files
        raise ValueError(f"damaged, or of a kind that cannot be read ({error})") from error
    if frames > 1:
        raise ValueError(f"has {frames} frames; only single pictures can be enlarged: save the one you want")
    if picture is None:
        raise ValueError(f"{bits}-bit {image.mode}; allowed: grey, palette, RGB, CMYK and YCbCr of 8 bits, "
                         "grey and RGB of 16 bits")
    return picture


def _bits(image: Image.Image) -> int:
    """Bits a sample in the file, not below 8. Of 16-bit colour Pillow decodes only 8, and says so in the tile alone."""
    tagged = max(getattr(image, "tag_v2", {}).get(258, (8,)))   # TIFF's BitsPerSample
    if tagged > 8:
        return tagged
    return 32 if image.mode in ("I", "F") else 16 if ";16" in f"{image.mode}{image.tile}" else 8


def _low_bytes(data: bytes) -> Image.Image:
    """The less significant bytes of a picture of 16-bit colour: decoded again, with the bytes of a sample swapped."""
    swap = {"16B": "16L", "16L": "16B", "16N": "16B"}   # N: native, little-endian on every machine that we know
    image, tiles = Image.open(io.BytesIO(data)), []
    for tile in image.tile:
        raw, *rest = (tile.args,) if isinstance(tile.args, str) else tile.args
        layout, _, order = raw.partition(";")
        if order not in swap:
            raise ValueError(f"16-bit samples laid out as {raw}")
        raw = f"{layout};{swap[order]}"
        tiles.append(tile._replace(args=(raw, *rest) if rest else raw))
    image.tile = tiles
    image.load()
    return ImageOps.exif_transpose(image)


def _picture(image: Image.Image, low: Image.Image | None) -> Picture:
    """A loaded image, with the low bytes of 16-bit colour if it has any, as arrays in 0..1."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I;16"):
        return Picture(np.array(image, dtype=np.float32)[..., None] / 65535, bits=16, profile=profile)
    if low is not None:
        values = np.array(image, dtype=np.float32) * 256 + np.array(low)
        return Picture(values[..., :3] / 65535, values[..., 3] / 65535 if values.shape[2] == 4 else None, 16, profile)
    if image.mode == "CMYK" and profile:
        image, profile = _managed(image, profile), None
    grey, alpha = image.mode in GREY, image.mode in ALPHA or "transparency" in image.info
    mode = ("LA" if grey else "RGBA") if alpha else "L" if grey else "RGB"
    values = np.array(image.convert(mode), dtype=np.float32).reshape(image.height, image.width, -1) / 255
    return Picture(values[..., :-1], values[..., -1], 8, profile) if alpha else Picture(values, None, 8, profile)


def _managed(image: Image.Image, profile: bytes) -> Image.Image:
    """CMYK as sRGB through its own colour profile, or without it if it is none for CMYK."""
    from PIL import ImageCms

    try:
        return ImageCms.profileToProfile(image, ImageCms.ImageCmsProfile(io.BytesIO(profile)),
                                         ImageCms.createProfile("sRGB"), outputMode="RGB")
    except ImageCms.PyCMSError:
        return image.convert("RGB")


# --- writing --------------------------------------------------------------------------------------------------------


def png(picture: Picture) -> bytes:
    """A picture as a PNG file, written by hand, because Pillow writes no 16-bit colour."""
    pixels = picture.channels
    height, width, count = pixels.shape
    rows = pixels.astype(">u2" if picture.bits == 16 else "u1").reshape(height, -1).view(np.uint8)
    step = count * picture.bits // 8
    filtered = np.empty((height, rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = 1   # filter "Sub": each byte minus that of the pixel to the left
    filtered[:, 1:] = rows
    filtered[:, 1 + step:] -= rows[:, :-step]

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[count]
    profile = chunk(b"iCCP", b"ICC\0\0" + zlib.compress(picture.profile)) if picture.profile else b""
    return (b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, picture.bits, colour_type, 0, 0, 0)) + profile
            + chunk(b"IDAT", zlib.compress(filtered.tobytes(), 6)) + chunk(b"IEND", b""))


# --- the network ----------------------------------------------------------------------------------------------------


def _through(model: nn.Module, x: Tensor) -> Tensor:
    """RGB through the network: float (1, 3, h, w) in 0..1 -> (1, 3, s h, s w), not clipped. All pixels pass here.

    A network of the study takes what half of the available memory cannot hold band by band: the same result.
    """
    if isinstance(model, SRNetwork):
        room = tiling.available_bytes(x.device) // 2
        if tiling.whole_bytes(model, *x.shape[2:]) > room:
            return tiling.in_bands(model, x, max_bytes=room)
    with torch.no_grad():
        return model(x.contiguous(memory_format=torch.channels_last))


def enlarge(model: nn.Module, picture: Picture) -> Picture:
    """A picture `model.scale` times as high and wide. Of a grey one the network's R, G and B are averaged."""
    x = torch.from_numpy(np.ascontiguousarray(picture.colour)).permute(2, 0, 1)[None].expand(-1, 3, -1, -1)
    y = _through(model, x.to(next(model.parameters()).device))[0].permute(1, 2, 0).clamp(0, 1).cpu().numpy()
    if picture.colour.shape[2] == 1:
        y = y.mean(2, keepdims=True)
    alpha = picture.alpha
    if alpha is not None:
        size = y.shape[1], y.shape[0]
        alpha = np.array(Image.fromarray(alpha).resize(size, Image.Resampling.BICUBIC)).clip(0, 1)
    return Picture(y, alpha, picture.bits, picture.profile)


# --- files ----------------------------------------------------------------------------------------------------------


def _pictures_in(folder: Path, out: Path) -> Iterator[Path]:
    """The picture files below a folder, by suffix, in order; not what is hidden or lies in `out`."""
    suffixes, out = Image.registered_extensions(), out.resolve()
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in suffixes and path.is_file() and not hidden and out not in path.resolve().parents:
            yield path


def plan(inputs: Iterable[str | os.PathLike], out: str | os.PathLike, scale: int) -> list[tuple[Path, Path]]:
    """What becomes what: (input file, output file). Folders are searched to the bottom, and kept as folders of `out`.

    `out` is a folder, or, for one input file, the PNG file to write. Raises ValueError if there are no pictures, or
    `out` is the name of a picture that cannot be written.
    """
    inputs, out = [Path(path) for path in inputs], Path(out)
    if out.suffix.lower() in Image.registered_extensions() and not out.is_dir():
        if out.suffix.lower() != ".png" or len(inputs) != 1 or inputs[0].is_dir():
            raise ValueError(f"output {out}: allowed are a folder or, for one input file, a name that ends in .png")
        return [(inputs[0], out)]
    pairs = {}
    for given in inputs:
        for path in _pictures_in(given, out) if given.is_dir() else [given]:
            below = path.parent.relative_to(given) if given.is_dir() else Path()
            pairs.setdefault(path.resolve(), (path, out / below / f"{path.stem}_x{scale}.png"))
    if not pairs:
        raise ValueError(f"no pictures in {', '.join(map(str, inputs)) or 'an empty list'}")
    return list(pairs.values())


def upscale(inputs: Iterable[str | os.PathLike], out: str | os.PathLike, *, scale: int | None = None,
            weights_file: str | os.PathLike | None = None, show: bool = True) -> tuple[list[Path], dict[Path, str]]:
    """Enlarge pictures and folders of them: (files written, failed input -> why). One failure does not stop the rest.

    `scale`: default that of `weights_file`, or 2; `weights_file`: default `weights.best(scale)`; `show`: progress bar.
    An input is never overwritten, nor one result by another; results of an earlier call are. Raises as `plan` and
    `weights.load` do, and ValueError for weights of another scale.
    """
    weights_file = weights_file or weights.best(scale or 2)
    model, record = weights.load(weights_file)
    if scale not in (None, model.scale):
        raise ValueError(f"{weights_file} enlarges {model.scale} times, not {scale}")
    pairs = plan(inputs, out, model.scale)
    if not config.get_profile(record["profile"]).evidence:
        warnings.warn(f"{weights_file}: trained only to see that everything runs; bicubic is better", stacklevel=2)
    model = model.to(study.default_device(), memory_format=torch.channels_last)
    taken, written, failed = {path.resolve() for path, _ in pairs}, [], {}
    for source, target in tqdm(pairs, f"{record['id']} ({record['profile']})", unit="file", disable=not show):
        try:
            if target.resolve() in taken:
                raise ValueError(f"its result {target} is an input or another one's result: not overwritten")
            write_bytes(target, png(enlarge(model, read(source))))
        except (OSError, ValueError, RuntimeError, MemoryError) as error:
            failed[source] = str(error) or type(error).__name__
        else:
            taken.add(target.resolve())
            written.append(target)
    return written, failed
