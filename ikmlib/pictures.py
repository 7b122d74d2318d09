"""Reading picture files with Pillow: 8 bits a sample, and a refusal that names what any other file is."""
from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from PIL import PngImagePlugin as Png

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "TGA", "TIFF", "WEBP")
GREY, ALPHA = ("1", "L", "LA", "La"), ("LA", "La", "PA", "RGBA", "RGBa")   # Pillow's modes of 8 bits and fewer
MODES = (*GREY, "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")


@contextmanager
def without_limits() -> Iterator[None]:
    """Within the block Pillow does not take large scans, and long compressed texts in PNG files, for attacks."""
    before = Image.MAX_IMAGE_PIXELS, Png.MAX_TEXT_CHUNK, Png.MAX_TEXT_MEMORY
    Image.MAX_IMAGE_PIXELS, Png.MAX_TEXT_CHUNK, Png.MAX_TEXT_MEMORY = None, 1 << 30, 1 << 30   # bytes of text
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS, Png.MAX_TEXT_CHUNK, Png.MAX_TEXT_MEMORY = before


def read(path: str | os.PathLike) -> Image.Image:
    """The picture in a file as a Pillow image of mode L, LA, RGB or RGBA, upright as its EXIF orientation says.

    Its `info` holds nothing but the ICC profile, if that is one for the mode. CMYK becomes sRGB through its profile.
    Raises FileNotFoundError, and ValueError for a file that is not in one of FORMATS, is damaged, has more than 8 bits
    a sample, or holds several pictures. Of a TIFF file the thumbnails do not count, and of an MPO file, which is a
    JPEG picture with a preview, only the first picture does.
    """
    data = Path(path).read_bytes()
    try:
        with without_limits():
            image = Image.open(io.BytesIO(data))
            refusal = _refusal(image, data)
            if not refusal:
                image.load()
                return _plain(image, data)
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is no picture, or a kind that Pillow does not know, such as 12-bit JPEG") from error
    except Exception as error:   # Pillow raises errors of many types for damaged files
        raise ValueError(f"{path} is damaged or cannot be read ({error or type(error).__name__})") from error
    raise ValueError(f"{path} {refusal}")


def _refusal(image: Image.Image, data: bytes) -> str:
    """Why an opened picture is not read, or an empty string; a TIFF file is left at the one page that is read."""
    if image.format not in FORMATS:
        return f"is a {image.format} file; allowed: {', '.join(FORMATS)}"
    pages = list(range(getattr(image, "n_frames", 1)))
    if image.format == "TIFF":   # bit 0 of tag 254 marks a reduced copy of another page
        pages = [page for page in pages if not (image.seek(page) or image.tag_v2.get(254, 0) & 1)]
        if not pages:   # as in a camera's raw file, whose picture Pillow does not see
            return "holds a reduced copy of a picture, and no picture that is read"
        image.seek(pages[0])
    if len(pages) > 1 and image.format != "MPO":
        return f"has {len(pages)} frames; only single pictures are read: save the one you want"
    if (bits := _bits(image, data)) > 8:
        return f"has {bits} bits a sample; 8 are allowed"
    if image.format == "JPEG2000" and bits < 8:
        return f"is a JPEG 2000 file of {bits} bits a sample; 8 are allowed"   # Pillow reads it too dark
    signed = (image.format == "TIFF" and 2 in image.tag_v2.get(339, ())
              or image.format == "JPEG2000" and any(byte & 128 for byte in _jpeg2000(data)))
    if image.mode not in MODES or signed:
        return f"has samples of another kind (mode {image.mode}); allowed: unsigned grey, palette, RGB, CMYK and YCbCr"
    return ""


def _bits(image: Image.Image, data: bytes) -> int:
    """The bits a sample has in the file, from its header, because Pillow reduces many pictures to 8 without a word."""
    if image.format == "PNG":
        return data[24]   # of the IHDR chunk
    if image.format == "TIFF":
        return max(image.tag_v2.get(258, (1,)))   # BitsPerSample
    if image.format == "PPM":
        args = image.tile[0].args   # (raw mode, largest value), or a raw mode that implies the largest value
        return args[1].bit_length() if len(args) == 2 else {"I": 16, "F": 32}.get(image.mode, 8)
    if image.format == "JPEG2000":
        return max(byte & 127 for byte in _jpeg2000(data)) + 1
    if image.format == "AVIF":   # the flags high_bitdepth and twelve_bit of the AV1 configuration
        flags = data[data.index(b"av1C") + 6]
        return 8 + 2 * (flags >> 6 & 1) + 2 * (flags >> 5 & 1)
    return 8


def _jpeg2000(data: bytes) -> bytes:
    """A byte for each component: its bits less one, and 128 if it is signed; from the SIZ marker segment."""
    size = data.index(b"\xff\x4f\xff\x51")
    return data[size + 42:size + 42 + 3 * int.from_bytes(data[size + 40:size + 42]):3]


def _plain(image: Image.Image, data: bytes) -> Image.Image:
    """A loaded image, upright and in one of the modes L, LA, RGB and RGBA, with its ICC profile if that fits."""
    profile = image.info.get("icc_profile") or b""
    if image.format == "PNG" and image.mode == "L" and "transparency" in image.info:
        image.info["transparency"] *= 255 // (2**data[24] - 1)   # Pillow scales samples of 2 and 4 bits, but not this
    if image.format == "TGA" and image.mode == "RGBA" and not data[17] & 15:   # a fourth byte, but no bits of alpha
        image = image.convert("RGB")
    image = ImageOps.exif_transpose(image)
    if image.mode == "CMYK":
        with suppress(OSError, ImageCms.PyCMSError):   # a missing or damaged profile leaves it to Pillow's formula
            image = ImageCms.profileToProfile(image, ImageCms.ImageCmsProfile(io.BytesIO(profile)),
                                              ImageCms.createProfile("sRGB"), outputMode="RGB")
        profile = b""
    grey, alpha = image.mode in GREY, image.mode in ALPHA or "transparency" in image.info
    image = image.convert(("LA" if grey else "RGBA") if alpha else "L" if grey else "RGB")
    image.info = {"icc_profile": profile} if profile[16:20] == (b"GRAY" if grey else b"RGB ") else {}
    return image
