"""Reading picture files: PNG, JPEG, BMP and WebP of 8 bits, grey or RGB; any other file is refused by its true name."""
import io
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def read_picture(path: str | os.PathLike) -> Image.Image:
    """The picture in a file as a Pillow image of mode L or RGB, upright as its EXIF orientation says.

    Samples of fewer than 8 bits are scaled to 8, and a palette becomes RGB. `info` holds nothing but the ICC profile,
    if that is one for the mode. Of an MPO file, which is a JPEG picture with a preview, the first picture is read.
    Raises OSError, and ValueError for a file that is of another kind, damaged, or larger than Pillow's limit.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a file, but a folder, a pipe or a device")
    data = path.read_bytes()
    try:
        image = Image.open(io.BytesIO(data))
        if not (refusal := _refusal(image, data)):
            return _plain(image)
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is no picture, or a kind that Pillow does not know, such as 12-bit JPEG") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} is too large ({error})") from error
    except Exception as error:   # Pillow raises errors of many types for damaged files
        raise ValueError(f"{path} is damaged or cannot be read ({error or type(error).__name__})") from error
    raise ValueError(f"{path} {refusal}")


def read_image(path: str | os.PathLike) -> np.ndarray:
    """The pixels of `read_picture`: uint8 (H, W, 3), or (H, W, 1) if they are stored as grey."""
    return np.atleast_3d(np.array(read_picture(path)))


def _refusal(image: Image.Image, data: bytes) -> str:
    """Why an opened picture is not read, or an empty string."""
    if image.format not in (*FORMATS, "MPO"):
        return f"is a {image.format} file; allowed: {', '.join(FORMATS)}"
    if (frames := getattr(image, "n_frames", 1)) > 1 and image.format != "MPO":
        return f"has {frames} frames; only single pictures are read: save the one you want"
    if image.format == "PNG" and data[24] > 8:   # in the header: Pillow reduces many pictures to 8 bits without a word
        return f"has {data[24]} bits a sample; 8 are allowed"
    key = "transparency" in image.info and image.mode != "P"   # one colour of grey or RGB that is transparent
    if key or image.has_transparency_data and image.convert("RGBA").getextrema()[3][0] < 255:
        return "has transparency: flatten it first"
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
        return f"is {image.mode}; allowed: grey, palette and RGB"
    return ""


def _plain(image: Image.Image) -> Image.Image:
    """A picture upright and of mode L or RGB, with its ICC profile if that is one for the mode."""
    profile = image.info.get("icc_profile") or b""
    mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
    image.info.pop("transparency", None)   # nothing is transparent: see `_refusal`
    image = ImageOps.exif_transpose(image).convert(mode)
    image.info = {"icc_profile": profile} if profile[16:20] == (b"GRAY" if mode == "L" else b"RGB ") else {}
    return image
