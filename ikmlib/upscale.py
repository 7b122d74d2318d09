"""A trained network on pictures as people have them. Those larger than 256 pixels are enlarged in overlapping tiles,
because the network needs up to 0.7 GB for one tile (x4). Attention is then the tile's own: four images of Set14 at x3
and x4 differ from the whole ones by at most 2 of 255 levels, by 0.05 to 0.08 on average."""
import io
import warnings
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ikmlib.datasets import pictures_in
from ikmlib.files import write_bytes
from ikmlib.pictures import SUFFIXES, read_picture
from ikmlib.study import records, weights
from ikmlib.trainers import check_network, super_resolve

EDGE = 8                          # pixels repeated around a picture, where the network would meet zeros
TILE, OVERLAP = 256 + 2 * EDGE, 32   # input pixels, edges included; of an overlap each of the two tiles gives one half


def enlarge(network: torch.nn.Module, picture: Image.Image, scale: int) -> Image.Image:
    """A picture of mode L or RGB, `scale` times as high and wide, with its colour profile.

    The network is one that `super_resolve` takes; for grey its R, G and B are averaged. Raises ValueError for a picture
    of another mode, and as `check_network` does.
    """
    if picture.mode not in ("L", "RGB"):
        raise ValueError(f"a picture of mode {picture.mode} is not enlarged; allowed: L and RGB")
    check_network(network, scale)
    pixels = np.pad(np.array(picture.convert("RGB")), ((EDGE, EDGE), (EDGE, EDGE), (0, 0)), "edge")
    result = np.empty((scale * pixels.shape[0], scale * pixels.shape[1], 3), np.uint8)
    ends = [max(side - TILE, 0) for side in pixels.shape[:2]]   # where the last tiles begin
    corners = list(product(*([*range(0, end, TILE - OVERLAP), end] for end in ends)))
    for top, left in tqdm(corners, leave=False, delay=2, unit="tile", disable=None):
        tile = super_resolve(network, pixels[top:top + TILE, left:left + TILE], scale)
        y, x = (scale * (start and OVERLAP // 2) for start in (top, left))
        result[scale * top + y:scale * (top + TILE), scale * left + x:scale * (left + TILE)] = tile[y:, x:]
    result = result[scale * EDGE:-scale * EDGE, scale * EDGE:-scale * EDGE]
    enlarged = Image.fromarray(result if picture.mode == "RGB" else result.mean(2).round().astype(np.uint8))
    enlarged.info = dict(picture.info)
    return enlarged


def plan(inputs: list[Path], out: Path, scale: int) -> list[tuple[Path, Path]]:
    """What becomes what: (input file, PNG file in the folder `out`). Of an input folder, the pictures in it are meant,
    and a warning names what else there is.

    An input that is the result of another one is left out, so that `upscale *.png -o .` can be repeated. Raises
    ValueError: no pictures, or `out` is the name of a file.
    """
    if not out.is_dir() and (out.exists() or out.suffix.lower() in SUFFIXES):
        kind = "the name of a picture" if out.suffix.lower() in SUFFIXES else "a file"
        raise ValueError(f"output {out} is {kind}; allowed: a folder")
    pairs = {}
    for given in inputs:
        found = pictures_in(given) if given.is_dir() else [given]
        others = {path.suffix.lower() or path.name for path in given.glob("[!.]*") if path not in found}
        if others:
            warnings.warn(f"{given}: passed over are {', '.join(sorted(others))}", stacklevel=2)
        pairs |= {path.absolute(): (path, out / f"{path.stem}_x{scale}.png") for path in found}
    if not pairs:
        raise ValueError(f"no pictures in {', '.join(map(str, inputs))}")
    targets = {target.absolute() for _, target in pairs.values()}
    return [pair for path, pair in pairs.items() if path not in targets]


def upscale(inputs: list[Path], out: Path, scale: int | None = None, weights_file: Path | None = None,
            ) -> tuple[list[Path], list[Path], list[str]]:
    """Enlarge pictures and folders of them: (files written, files that were there, what failed and why).

    The default `scale` is that of `weights_file`, or 2; the default file is `weights.best(scale)`. No file is
    overwritten. Of two pictures whose results would have one name, the second fails. Raises as `plan` and
    `weights.load` do.
    """
    weights_file = weights_file or weights.best(scale or 2)
    network = weights.load(weights_file, scale)[0].to(records.default_device())
    written, there, failed, sources = [], [], [], {}
    for source, target in tqdm(plan(inputs, out, network.scale), weights_file.stem, unit="file", disable=None):
        try:
            if (first := sources.setdefault(target.absolute(), source)) != source:
                raise ValueError(f"its result would be {target}, like that of {first}: rename one of them")
            if target.exists():
                there.append(target)
                continue
            stream = io.BytesIO()
            enlarge(network, read_picture(source), network.scale).save(stream, "PNG")
            write_bytes(target, stream.getvalue())
            written.append(target)
        except (OSError, ValueError, RuntimeError, MemoryError) as error:
            failed.append(f"{source}: {str(error).removeprefix(f'{source} ') or type(error).__name__}")
    return written, there, failed
