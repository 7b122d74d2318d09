"""A trained network on pictures as people have them: `python -m ikmlib upscale IN... -o OUT --scale 2`.

It takes the pictures that `pictures.read` reads, of 8 bits a sample, and writes PNG files. A grey picture stays grey.
Transparency is enlarged by bicubic interpolation, and the network sees no colour hidden under full transparency.

A picture larger than TILE is enlarged in overlapping tiles, so that the network needs memory for one tile only: about
1 GB for the U-HDB weights, 1.5 GB for U-HDN_L at x4. Attention (IKM's and CA's) is then the tile's own, hence the
result is not exactly that of the whole picture. Measured with IKM weights for x3 and x4, of 2,000 updates: with Set14's
barbara, bridge, ppt3 and zebra as inputs, the two differ by at most 2 of 255 levels, by 0.05 to 0.08 levels on average,
and have a PSNR of 63 dB or more against one another. Against the original, five images of Set14 in tiles of 96, which
differ more, lose about 0.001 dB at most. Networks whose attention depends more on the image may differ more.
"""
from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from scipy.ndimage import distance_transform_edt
from torch import nn
from tqdm import tqdm

from ikmlib import config
from ikmlib.files import write_bytes
from ikmlib.pictures import FORMATS, read, without_limits
from ikmlib.study import records, weights

TILE, OVERLAP = 256, 32   # input pixels; of an overlap each of the two tiles gives one half
DIGEST = "ikmlib upscale"   # the key of a text in each result's PNG file: a digest of all that it depends on


def enlarge(network: nn.Module, picture: Image.Image, scale: int | None = None) -> Image.Image:
    """A picture (mode L, LA, RGB or RGBA) `scale` times as high and wide, in the same mode, with its profile.

    `network` maps float RGB (1, 3, h, w) in 0..1 to (1, 3, scale h, scale w); without `scale`, its own is taken. Of a
    grey picture its R, G and B are averaged. A picture of at most TILE x TILE pixels goes through it whole.
    """
    scale = network.scale if scale is None else scale
    (width, height), alpha = picture.size, picture.mode in ("LA", "RGBA")
    result = Image.new(picture.mode[:-1] if alpha else picture.mode, (scale * width, scale * height))
    result.info = dict(picture.info)
    tiles = list(product(_starts(height), _starts(width)))
    for top, left in tqdm(tiles, leave=False, delay=2, unit="tile", disable=None):
        tile = picture.crop((left, top, min(left + TILE, width), min(top + TILE, height)))
        pixels = _through(network, _without_hidden_colour(tile) if alpha else tile)
        y, x = (start and OVERLAP // 2 * scale for start in (top, left))
        result.paste(Image.fromarray(pixels[y:, x:]), (scale * left + x, scale * top + y))   # over earlier tiles
    if alpha:
        result.putalpha(picture.getchannel("A").resize(result.size, Image.Resampling.BICUBIC))
    return result


def _starts(length: int) -> list[int]:
    """Where the tiles begin along a side of so many pixels; the last one ends with the side."""
    last = max(length - TILE, 0)
    return [*range(0, last, TILE - OVERLAP), last]


def _through(network: nn.Module, tile: Image.Image) -> np.ndarray:
    """A tile of mode L or RGB through the network, clipped and rounded: uint8 (s h, s w) or (s h, s w, 3)."""
    device = next(network.parameters()).device
    x = torch.from_numpy(np.array(tile.convert("RGB"))).to(device).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        y = network(x.contiguous(memory_format=torch.channels_last))[0].clamp(0, 1)
    y = y.mean(0) if tile.mode == "L" else y.permute(1, 2, 0)
    return (y * 255).round().byte().cpu().numpy()


def _without_hidden_colour(tile: Image.Image) -> Image.Image:
    """A tile of mode LA or RGBA as L or RGB: pixels of alpha 0 take the colour of the nearest pixel that is visible."""
    colour, hidden = np.array(tile.convert(tile.mode[:-1])), np.array(tile.getchannel("A")) == 0
    if hidden.all():
        colour[:] = 0
    elif hidden.any():
        colour = colour[tuple(distance_transform_edt(hidden, return_distances=False, return_indices=True))]
    return Image.fromarray(colour)


def png(picture: Image.Image, digest: str | None = None) -> bytes:
    """A picture as a PNG file, with its colour profile and, if given, the `digest` of all that it depends on."""
    text, stream = PngImagePlugin.PngInfo(), io.BytesIO()
    if digest:
        text.add_text(DIGEST, digest)
    picture.save(stream, "PNG", pnginfo=text)
    return stream.getvalue()


def _digest(path: Path) -> str | None:
    """The digest in a PNG file that this command wrote; None for any other file, or where there is none."""
    try:
        with without_limits(), Image.open(path, formats=["PNG"]) as image:
            return image.info.get(DIGEST)
    except (OSError, SyntaxError, ValueError):
        return None


def _pictures_in(folder: Path) -> Iterator[Path]:
    """The picture files below a folder, by suffix, in order, but not hidden ones and not results of this command."""
    formats = Image.registered_extensions()
    for path in sorted(folder.rglob("*")):
        picture = formats.get(path.suffix.lower()) in FORMATS and path.is_file() and _digest(path) is None
        if picture and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def plan(inputs: Iterable[str | os.PathLike], out: str | os.PathLike, scale: int) -> list[tuple[Path, Path]]:
    """What becomes what: (input file, output file). Folders are searched to the bottom, and kept as folders of `out`.

    `out` is a folder, which may be or hold the inputs' own, or, for one input file, the PNG file to write. Raises
    ValueError if there are no pictures, or `out` is the name of a picture that cannot be written.
    """
    inputs, out = [Path(path) for path in inputs], Path(out)
    if out.suffix.lower() in Image.registered_extensions() and not out.is_dir():
        if out.suffix.lower() != ".png" or len(inputs) != 1 or inputs[0].is_dir():
            raise ValueError(f"output {out}: allowed are a folder or, for one input file, a name that ends in .png")
        return [(inputs[0], out)]
    pairs = {}
    for given in inputs:
        for path in _pictures_in(given) if given.is_dir() else [given]:
            below = path.parent.relative_to(given) if given.is_dir() else Path()
            pairs.setdefault(path.resolve(), (path, out / below / f"{path.stem}_x{scale}.png"))
    if not pairs:
        raise ValueError(f"no pictures in {', '.join(map(str, inputs)) or 'an empty list'}")
    return list(pairs.values())


def upscale(inputs: Iterable[str | os.PathLike], out: str | os.PathLike, *, scale: int | None = None,
            weights_file: str | os.PathLike | None = None, show: bool = True,
            ) -> tuple[list[Path], list[Path], dict[Path, str]]:
    """Enlarge pictures and folders of them: (files written, results kept, failed input -> why, with its name).

    `scale`: default that of `weights_file`, or 2; `weights_file`: default `weights.best(scale)`; `show`: progress bar.
    One failure does not stop the rest. A result of an earlier call is kept if its input, weights and tiles were the
    same, else replaced; any other file that is in the way is not overwritten. Raises as `plan` and `weights.load` do,
    and ValueError for weights of another scale.
    """
    weights_file = Path(weights_file or weights.best(scale or 2))
    network, record = weights.load(weights_file)
    if scale not in (None, network.scale):
        raise ValueError(f"{weights_file} enlarges {network.scale} times, not {scale}")
    pairs = plan(inputs, out, network.scale)
    if not config.get_profile(record["profile"]).evidence:
        warnings.warn(f"{weights_file}: trained only to see that everything runs; bicubic is better", stacklevel=2)
    network = network.to(records.default_device(), memory_format=torch.channels_last)
    common = f"{TILE} {OVERLAP} {hashlib.sha256(weights_file.read_bytes()).hexdigest()}".encode()
    taken, written, kept, failed = {path.resolve() for path, _ in pairs}, [], [], {}
    for source, target in tqdm(pairs, f"{record['id']} ({record['profile']})", unit="file", disable=not show):
        try:
            if target.resolve() in taken:
                raise ValueError(f"{source}: its result {target} is an input or another one's result: not overwritten")
            digest, found = hashlib.sha256(common + source.read_bytes()).hexdigest(), _digest(target)
            if target.exists() and found is None:
                raise ValueError(f"{source}: {target} was not written by this command: not overwritten")
            if found != digest:
                write_bytes(target, png(enlarge(network, read(source)), digest))
            (kept if found == digest else written).append(target)
            taken.add(target.resolve())
        except (OSError, ValueError, RuntimeError, MemoryError) as error:
            why = str(error) or type(error).__name__
            failed[source] = why if str(source) in why else f"{source}: {why}"
    return written, kept, failed
