"""Reading pictures: which pixels come out, and by which name everything else is refused."""
import io
import os
import struct
import zlib

import numpy as np
import pytest
from conftest import garbled
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin

from ikmlib.pictures import read_image, read_picture

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
IMAGE = Image.fromarray(RGB)
GREY = IMAGE.convert("L")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
FRAMES = [Image.new("L", (9, 9), value) for value in (0, 99)]


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png(bits: int, colour_type: int, row: bytes, key: bytes = b"") -> bytes:
    """A PNG file, written by hand, of four by one pixels; `key`: the colour that is transparent."""
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 4, 1, bits, colour_type, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + (chunk(b"tRNS", key) if key else b"")
            + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b""))


def with_alpha(image: Image.Image, least: int) -> Image.Image:
    """A picture with an alpha channel of `least` at one pixel and of 255 elsewhere."""
    alpha, image = Image.new("L", image.size, 255), image.copy()
    alpha.putpixel((3, 2), least)
    image.putalpha(alpha)
    return image


def test_kinds_of_8_bits(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    palette, bits = IMAGE.quantize(8), GREY.convert("1")
    kinds = {
        "a.png": (encoded(IMAGE, "PNG"), RGB), "a.bmp": (encoded(IMAGE, "BMP"), RGB),
        "a.webp": (encoded(IMAGE, "WEBP", lossless=True), RGB), "grey.png": (encoded(GREY, "PNG"), np.array(GREY)),
        "grey.bmp": (encoded(GREY, "BMP"), np.array(GREY)), "bit.png": (encoded(bits, "PNG"), 255 * np.array(bits)),
        "two_bits.png": (png(2, 0, b"\x1b"), np.array([[0, 85, 170, 255]])),
        "palette.png": (encoded(palette, "PNG"), np.array(palette.convert("RGB"))),
        "turned.png": (encoded(IMAGE.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif), RGB),
        "opaque.png": (encoded(with_alpha(IMAGE, 255), "PNG"), RGB),
        "opaque_grey.png": (encoded(with_alpha(GREY, 255), "PNG"), np.array(GREY)),
        "opaque_palette.png": (encoded(palette, "PNG", transparency=255), np.array(palette.convert("RGB"))),
    }
    for name, (content, expected) in kinds.items():
        (tmp_path / name).write_bytes(content)
        found, shape = read_image(tmp_path / name), (expected.shape + (1,))[:3]
        assert np.array_equal(found, expected.reshape(shape)) and found.dtype == np.uint8, name
        assert found.flags.writeable
    (tmp_path / "a.jpg").write_bytes(encoded(Image.new("RGB", (9, 9), "teal"), "JPEG", quality=95))
    assert abs(read_image(tmp_path / "a.jpg").astype(int) - (0, 128, 128)).max() <= 2


def cut(kind: str) -> tuple[str, bytes, str]:
    data = encoded(IMAGE, kind)
    return f"cut.{kind.lower()}", data[:len(data) // 2], "is damaged"


@pytest.mark.parametrize(("name", "content", "message"), [
    *((f"{name}.png", content, "has 16 bits a sample; 8 are allowed") for name, content in (
        ("grey", png(16, 0, bytes(8))), ("rgb", png(16, 2, bytes(24))), ("la", png(16, 4, bytes(16))),
        ("rgba", png(16, 6, bytes(32))), ("grey_key", png(16, 0, bytes(8), b"\x12\x34")),
        ("rgb_key", png(16, 2, bytes(24), bytes(6))))),
    *((f"{name}.png", content, "has transparency: flatten it first") for name, content in (
        ("rgba", encoded(with_alpha(IMAGE, 254), "PNG")), ("la", encoded(with_alpha(GREY, 0), "PNG")),
        ("palette", encoded(IMAGE.quantize(8), "PNG", transparency=2)), ("key2", png(2, 0, b"\x1b", b"\0\1")),
        ("rgb_key", encoded(IMAGE, "PNG", transparency=(1, 2, 3))))),
    ("a.webp", encoded(with_alpha(IMAGE, 0), "WEBP", lossless=True), "has transparency"),
    ("cmyk.jpg", encoded(IMAGE.convert("CMYK"), "JPEG"), "is CMYK; allowed: grey, palette and RGB"),
    *((f"a.{kind}", encoded(IMAGE, kind), f"is a {kind} file; allowed: PNG, JPEG, BMP, WEBP")
      for kind in ("TIFF", "GIF", "PPM", "JPEG2000", "AVIF", "ICO")),
    ("two.png", encoded(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]), "has 2 frames"),
    ("two.webp", encoded(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:]), "has 2 frames"),
    ("text.png", b"hello", "is no picture"), ("empty.png", b"", "is no picture"), *map(cut, ("PNG", "JPEG", "BMP")),
    ("flip.png", encoded(IMAGE, "PNG")[:-30] + bytes(30), "is damaged"),
])
def test_what_is_not_read_is_refused_by_its_true_name(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} {message}"):
        read_image(tmp_path / name)


def test_folders_pipes_and_absent_files_are_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")   # nobody writes: reading it would never end
    for path in (tmp_path, tmp_path / "pipe.png", "/dev/null"):
        with pytest.raises(ValueError, match=f"{path} is not a file, but a folder, a pipe or a device"):
            read_picture(path)
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        read_picture(tmp_path / "gone.png")


FUZZED = [encoded(IMAGE, kind) for kind in ("BMP", "JPEG", "PNG", "WEBP")]


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.sampled_from(FUZZED).flatmap(garbled))
def test_a_garbled_picture_is_read_or_refused_in_one_line(tmp_path, data):
    (tmp_path / "a").write_bytes(data)
    try:
        assert read_picture(tmp_path / "a").mode in ("L", "RGB")
    except ValueError as error:
        assert str(error).startswith(f"{tmp_path / 'a'} ") and len(str(error).splitlines()) == 1


def test_the_preview_in_a_phone_s_picture_does_not_count(tmp_path):
    IMAGE.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[IMAGE.resize((6, 4))])
    assert Image.open(tmp_path / "a.jpg").n_frames == 2 and read_picture(tmp_path / "a.jpg").size == (30, 20)


def test_pictures_and_texts_beyond_pillow_s_limits_are_refused(tmp_path, monkeypatch):
    text = PngImagePlugin.PngInfo()
    text.add_text("long", "x" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    IMAGE.save(tmp_path / "text.png", pnginfo=text)
    with pytest.raises(ValueError, match=r"text\.png .*cannot be read .*MAX_TEXT_CHUNK"):
        read_picture(tmp_path / "text.png")
    IMAGE.save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"large\.png is too large \(Image size \(600 pixels\) exceeds limit of 200"):
        read_picture(tmp_path / "large.png")


def test_a_profile_is_kept_only_where_it_fits(tmp_path):
    grey = SRGB[:16] + b"GRAY" + SRGB[20:]
    for mode, profile, kept in (("RGB", SRGB, True), ("L", SRGB, False), ("L", grey, True), ("RGB", grey, False),
                                ("P", SRGB, True)):
        IMAGE.convert(mode).save(tmp_path / "a.png", icc_profile=profile)
        assert read_picture(tmp_path / "a.png").info == ({"icc_profile": profile} if kept else {}), mode
