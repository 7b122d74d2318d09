"""A trained network on pictures as people have them. Those larger than TILE are enlarged in overlapping tiles, because
the network needs 1 GB for one tile. Attention is then the tile's own: with IKM weights for x3 and x4, four images of
Set14 in tiles differ from the whole ones by at most 2 of 255 levels, by 0.05 to 0.08 on average."""
from __future__ import annotations

import hashlib
import io
import warnings
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from scipy.ndimage import distance_transform_edt
from tqdm import tqdm

from ikmlib import config
from ikmlib.files import write_bytes
from ikmlib.pictures import FORMATS, read, without_limits
from ikmlib.study import records, weights
from ikmlib.trainers import super_resolve

TILE, OVERLAP = 256, 32   # input pixels; of an overlap each of the two tiles gives one half
DIGEST = "ikmlib upscale"   # the key of a text in each result's PNG file: a digest of all that it depends on


def enlarge(network: torch.nn.Module, picture: Image.Image, scale: int | None = None) -> Image.Image:
    """A picture (mode L, LA, RGB or RGBA) `scale` times as high and wide, in the same mode, with its profile.

    `network` maps float RGB (1, 3, h, w) in 0..1 to (1, 3, scale h, scale w); for grey, R, G and B are averaged. It
    sees no colour that is hidden under full transparency. Alpha is enlarged by bicubic interpolation.
    """
    scale = scale or network.scale
    (width, height), mode = picture.size, picture.mode.removesuffix("A")
    result = Image.new(mode, (scale * width, scale * height))
    result.info = dict(picture.info)
    ends = max(height - TILE, 0), max(width - TILE, 0)   # where the last tiles begin
    corners = list(product(*([*range(0, end, TILE - OVERLAP), end] for end in ends)))
    for top, left in tqdm(corners, leave=False, delay=2, unit="tile", disable=None):
        tile = picture.crop((left, top, min(left + TILE, width), min(top + TILE, height)))
        tile = tile if tile.mode == mode else _visible(tile)
        pixels = super_resolve(network, np.array(tile.convert("RGB")))
        if mode == "L":
            pixels = pixels.mean(2).round().astype(np.uint8)
        y, x = (start and OVERLAP // 2 * scale for start in (top, left))
        result.paste(Image.fromarray(pixels[y:, x:]), (scale * left + x, scale * top + y))   # over earlier tiles
    if picture.mode != mode:
        result.putalpha(picture.getchannel("A").resize(result.size, Image.Resampling.BICUBIC))
    return result


def _visible(tile: Image.Image) -> Image.Image:
    """A tile without its alpha: pixels of alpha 0 take the colour of the nearest pixel that is visible, else black."""
    colour, hidden = np.array(tile.convert(tile.mode[:-1])), np.array(tile.getchannel("A")) == 0
    nearest = distance_transform_edt(hidden, return_distances=False, return_indices=True)
    return Image.fromarray(np.zeros_like(colour) if hidden.all() else colour[tuple(nearest)])


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


def _pictures_in(folder: Path, out: Path) -> list[Path]:
    """The picture files below a folder, by suffix, in order, but not hidden ones and not this command's results in
    `out`. Warns of the suffixes that are passed over."""
    formats = Image.registered_extensions()
    every = [path for path in sorted(folder.rglob("*")) if path.is_file()
             and not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    pictures = [path for path in every if formats.get(path.suffix.lower()) in FORMATS]
    if others := sorted({path.suffix.lower() or path.name for path in set(every) - set(pictures)}):
        warnings.warn(f"{folder}: files of other kinds are passed over: {', '.join(others)}", stacklevel=2)
    return [path for path in pictures if not (path.resolve().is_relative_to(out.resolve()) and _digest(path))]


def plan(inputs: list[Path], out: Path, scale: int) -> list[tuple[Path, Path]]:
    """What becomes what: (input file, output file). Folders are searched to the bottom, and kept as folders of `out`.

    `out` is a folder or, for one input file, the PNG file to write. An input that is another one's earlier result is
    left out, so that `upscale *.png -o .` can be repeated. ValueError: no pictures, or another `out`.
    """
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
        raise ValueError(f"no pictures in {', '.join(map(str, inputs))}")
    targets = {target.resolve() for _, target in pairs.values()}
    return [pair for path, pair in pairs.items() if path not in targets or _digest(path) is None]


def upscale(inputs: list[Path], out: Path, scale: int | None = None, weights_file: Path | None = None,
            ) -> tuple[list[Path], list[Path], list[str]]:
    """Enlarge pictures and folders of them: (files written, results kept, what failed and why).

    `scale`: default that of `weights_file`, or 2; `weights_file`: default `weights.best(scale)`. An earlier result of
    the same input, weights and tiles is kept, another one replaced; no other file is overwritten. Raises as `plan` and
    `weights.load` do, and ValueError for weights of another scale.
    """
    weights_file = weights_file or weights.best(scale or 2)
    network, record = weights.load(weights_file)
    if scale not in (None, network.scale):
        raise ValueError(f"{weights_file} enlarges {network.scale} times, not {scale}")
    if not config.get_profile(record["profile"]).evidence:
        warnings.warn(f"{weights_file}: trained too little to be used, see the model card", stacklevel=2)
    network = network.to(records.default_device(), memory_format=torch.channels_last)
    common = f"{TILE} {OVERLAP} {hashlib.sha256(weights_file.read_bytes()).hexdigest()}".encode()
    pairs, written, kept, failed = plan(inputs, out, network.scale), [], [], []
    taken = {path.resolve() for path, _ in pairs}
    for source, target in tqdm(pairs, record["id"], unit="file", disable=None):
        try:
            digest, found = hashlib.sha256(common + source.read_bytes()).hexdigest(), _digest(target)
            if target.resolve() in taken or (target.exists() and found is None):
                raise ValueError(f"{target} is an input, or not a result of this picture: not overwritten")
            if found != digest:
                write_bytes(target, png(enlarge(network, read(source)), digest))
            (kept if found == digest else written).append(target)
            taken.add(target.resolve())
        except (OSError, ValueError, RuntimeError, MemoryError) as error:
            failed.append(f"{source}: {str(error).removeprefix(f'{source} ') or type(error).__name__}")
    return written, kept, failed
