"""Reading pictures: what of 8 bits comes out, and by which name everything else is refused."""
import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from conftest import garbled
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin

from ikmlib.pictures import read

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
DEEP = np.random.default_rng(0).integers(0, 65536, (6, 9, 3), dtype=np.uint16)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
FRAMES = [Image.new("L", (9, 9), value) for value in (0, 99)]


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def tiff(pixels: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, pixels, **options)
    return stream.getvalue()


def png(bits: int, colour_type: int, row: bytes, key: bytes = b"") -> bytes:
    """A PNG file, written by hand, of four by one pixels; `key`: the colour that is transparent."""
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 4, 1, bits, colour_type, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + (chunk(b"tRNS", key) if key else b"")
            + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b""))


def test_kinds_of_8_bits(tmp_path):
    image, grey = Image.fromarray(RGB), Image.fromarray(RGB).convert("L")
    alpha = Image.fromarray(np.arange(600, dtype=np.uint8).reshape(20, 30))
    exif = Image.Exif()
    exif[0x0112] = 6
    with_alpha, grey_alpha, palette = image.copy(), grey.copy(), image.quantize(8)
    with_alpha.putalpha(alpha)
    grey_alpha.putalpha(alpha)
    indices = np.array(palette)
    kinds = {
        "a.png": (encoded(image, "PNG"), RGB), "a.bmp": (encoded(image, "BMP"), RGB),
        "a.tif": (encoded(image, "TIFF", compression="tiff_lzw"), RGB),
        "white.tif": (tiff(RGB[..., 0], photometric="miniswhite"), 255 - RGB[..., 0]),
        "a.jp2": (encoded(image, "JPEG2000"), RGB), "a.ppm": (encoded(image, "PPM"), RGB),
        "low.pgm": (b"P5 3 1 15\n\0\7\17", np.array([[0, 119, 255]])),
        "a.webp": (encoded(with_alpha, "WEBP", lossless=True, exact=True), np.dstack([RGB, alpha])),
        "rgba.png": (encoded(with_alpha, "PNG"), np.dstack([RGB, alpha])),
        "la.png": (encoded(grey_alpha, "PNG"), np.dstack([grey, alpha])),
        "grey.png": (encoded(grey, "PNG"), np.array(grey)),
        "bit.png": (encoded(grey.convert("1"), "PNG"), np.array(grey.convert("1").convert("L"))),
        "palette.gif": (encoded(palette, "GIF"), np.array(palette.convert("RGB"))),
        "clear.png": (encoded(palette, "PNG", transparency=2),
                      np.dstack([np.array(palette.convert("RGB")), (indices != 2) * np.uint8(255)])),
        "key2.png": (png(2, 0, b"\x1b", b"\0\1"), np.array([[[0, 255], [85, 0], [170, 255], [255, 255]]])),
        "turned.png": (encoded(image.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif), RGB),
    }
    for name, (content, expected) in kinds.items():
        (tmp_path / name).write_bytes(content)
        assert np.array_equal(np.array(read(tmp_path / name)), expected), name
    (tmp_path / "a.avif").write_bytes(encoded(Image.new("RGB", (9, 9), "teal"), "AVIF"))
    assert abs(np.array(read(tmp_path / "a.avif")).astype(int) - (0, 128, 128)).max() <= 2


def deep_jp2(**options) -> bytes:
    """A JPEG 2000 file whose header says 16 bits."""
    data = bytearray(encoded(Image.fromarray(RGB), "JPEG2000", **options))
    at = data.index(b"\xff\x4f\xff\x51") + 42
    data[at:at + 9:3] = b"\x0f\x0f\x0f"
    return bytes(data)


def deep_avif() -> bytes:
    """An AVIF file whose header says 10 bits."""
    data = bytearray(encoded(Image.fromarray(RGB), "AVIF"))
    data[data.index(b"av1C") + 6] |= 1 << 6
    pixi = data.index(b"pixi") + 9
    data[pixi:pixi + 3] = b"\x0a\x0a\x0a"
    return bytes(data)


@pytest.mark.parametrize(("name", "content", "bits"), [
    ("grey.png", png(16, 0, bytes(8)), 16), ("rgb.png", png(16, 2, bytes(24)), 16),
    ("la.png", png(16, 4, bytes(16)), 16), ("rgba.png", png(16, 6, bytes(32)), 16),
    ("grey_key.png", png(16, 0, bytes(8), b"\x12\x34"), 16), ("rgb_key.png", png(16, 2, bytes(24), bytes(6)), 16),
    ("deep.ppm", b"P6 1 1 65535\n" + bytes(6), 16), ("deep.pgm", b"P5 1 1 65535\n" + bytes(2), 16),
    ("ten.pgm", b"P5 1 1 1023\n" + bytes(2), 10), ("plain.ppm", b"P3 1 1 4095\n1 2 3\n", 12),
    ("float.pfm", b"Pf\n1 1\n-1.0\n" + bytes(4), 32),
    ("rgb.tif", tiff(DEEP, photometric="rgb"), 16), ("grey.tif", tiff(DEEP[..., 0]), 16),
    ("white.tif", tiff(DEEP[..., 0], photometric="miniswhite"), 16),
    ("planar.tif", tiff(np.ascontiguousarray(DEEP.transpose(2, 0, 1)), photometric="rgb", planarconfig="separate"), 16),
    ("float.tif", tiff(DEEP[..., 0].astype(np.float32)), 32),
    ("deep.jp2", deep_jp2(), 16), ("deep.j2k", deep_jp2(no_jp2=True), 16), ("deep.avif", deep_avif(), 10),
])
def test_more_than_8_bits_are_refused_by_their_number(tmp_path, name, content, bits):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} has {bits} bits a sample; 8 are allowed"):
        read(tmp_path / name)


def jp2_of(depth: int) -> bytes:
    """A JPEG 2000 file whose header says of all samples: their bits less one, and 128 if they are signed."""
    data = bytearray(encoded(Image.fromarray(RGB), "JPEG2000"))
    size = data.index(b"\xff\x4f\xff\x51")
    data[size + 42:size + 51:3] = bytes([depth] * 3)
    return bytes(data)


def cut(kind: str) -> tuple[str, bytes, str]:
    data = encoded(Image.fromarray(RGB), kind)
    return f"cut.{kind.lower()}", data[:len(data) // 2], "is damaged"


@pytest.mark.parametrize(("name", "content", "message"), [
    ("text.png", b"hello", "is no picture"), ("empty.png", b"", "is no picture"),
    *map(cut, ("PNG", "JPEG", "BMP", "TIFF")),
    ("flip.png", encoded(Image.fromarray(RGB), "PNG")[:-30] + bytes(30), "is damaged"),
    ("two.gif", encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), "has 2 frames"),
    ("two.png", encoded(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]), "has 2 frames"),
    ("two.tif", encoded(FRAMES[0], "TIFF", save_all=True, append_images=FRAMES[1:]), "has 2 frames"),
    ("signed.tif", tiff(RGB[..., 0].astype(np.int8)), r"has samples of another kind \(mode L\)"),
    ("lab.tif", encoded(Image.new("LAB", (9, 9)), "TIFF"), r"has samples of another kind \(mode LAB\)"),
    ("dim.jp2", jp2_of(0), "is a JPEG 2000 file of 1 bits a sample"),
    ("signed.jp2", jp2_of(135), "has samples of another"),
    ("raw.tif", encoded(Image.fromarray(RGB), "TIFF", tiffinfo={254: 1}), "holds a reduced copy of a picture"),
    ("icon.png", encoded(Image.fromarray(RGB), "ICO"), "is a ICO file; allowed: AVIF"),
])
def test_what_cannot_be_read_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} {message}"):
        read(tmp_path / name)


FUZZED = [encoded(Image.fromarray(RGB), kind) for kind in (
    "AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "TGA", "TIFF", "WEBP")]


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.sampled_from(FUZZED).flatmap(garbled))
def test_a_garbled_picture_is_read_or_refused_in_one_line(tmp_path, data):
    (tmp_path / "a").write_bytes(data)
    try:
        assert read(tmp_path / "a").mode in ("L", "LA", "RGB", "RGBA")
    except ValueError as error:
        assert str(error).startswith(f"{tmp_path / 'a'} ") and len(str(error).splitlines()) == 1


def test_a_fourth_byte_that_is_no_alpha_does_not_count(tmp_path):
    data = bytearray(encoded(Image.fromarray(np.dstack([RGB, RGB[..., :1] * 0])), "TGA"))
    data[17] &= 0xF0   # bits of alpha
    (tmp_path / "a.tga").write_bytes(data)
    assert np.array_equal(np.array(read(tmp_path / "a.tga")), RGB)


def test_a_thumbnail_page_does_not_count_wherever_it_is(tmp_path):
    for name, pages in (("after.tif", [(RGB, 0), (RGB[::4, ::4], 1)]), ("before.tif", [(RGB[::4, ::4], 1), (RGB, 0)])):
        with tifffile.TiffWriter(tmp_path / name) as file:
            for pixels, reduced in pages:
                file.write(pixels, photometric="rgb", subfiletype=reduced)
        assert np.array_equal(np.array(read(tmp_path / name)), RGB), name


def test_the_preview_in_a_phone_s_picture_does_not_count(tmp_path):
    image = Image.fromarray(RGB)
    image.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[image.resize((6, 4))])
    assert Image.open(tmp_path / "a.jpg").n_frames == 2 and read(tmp_path / "a.jpg").size == (30, 20)


def test_large_pictures_and_long_texts_are_read_and_pillow_s_limits_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    text = PngImagePlugin.PngInfo()
    text.add_text("long", "x" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    Image.fromarray(RGB).save(tmp_path / "a.png", pnginfo=text)
    before = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    assert np.array_equal(np.array(read(tmp_path / "a.png")), RGB)
    assert (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY) == before and Image.MAX_IMAGE_PIXELS == 100


def test_a_profile_is_kept_only_where_it_fits(tmp_path):
    grey = SRGB[:16] + b"GRAY" + SRGB[20:]
    for mode, profile, kept in (("RGB", SRGB, True), ("RGBA", SRGB, True), ("L", SRGB, False), ("LA", SRGB, False),
                                ("L", grey, True), ("RGB", grey, False), ("P", SRGB, True)):
        Image.fromarray(RGB).convert(mode).save(tmp_path / "a.png", icc_profile=profile)
        assert read(tmp_path / "a.png").info == ({"icc_profile": profile} if kept else {}), mode


def test_cmyk_becomes_rgb_with_and_without_a_profile(tmp_path):
    smooth = np.array(Image.fromarray(RGB[:2, :3]).resize((30, 20), Image.Resampling.BILINEAR))
    cmyk = Image.fromarray(smooth).convert("CMYK")
    for profile in (None, SRGB, SRGB[:16] + b"CMYK" + SRGB[20:]):   # none, not one for CMYK, damaged
        cmyk.save(tmp_path / "a.jpg", quality=100, icc_profile=profile)
        found = read(tmp_path / "a.jpg")
        assert found.mode == "RGB" and not found.info and abs(np.array(found) - smooth.astype(float)).mean() < 6
