"""Pictures of every allowed format become upright RGB; what cannot be decoded has a typed reason."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from fusemix.data import media
from fusemix.data.images import IMAGE_FORMATS, load_image
from fusemix.data.media import ItemError, Span


def reason_of(path):
    with pytest.raises(ItemError) as caught:
        load_image(path)
    return caught.value.reason


def noise(width=24, height=16):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image, format_, **options):
    sink = BytesIO()
    image.save(sink, format_, **options)
    return sink.getvalue()


def png_header(width, height):
    """A PNG file of one bit per pixel without any pixels."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + start + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("format_", IMAGE_FORMATS)
def test_every_allowed_format_decodes_to_rgb(tmp_path, format_):
    image = Image.new("RGB", (6, 4), (200, 30, 60))
    path = tmp_path / f"a.{format_.lower()}"
    path.write_bytes(encoded(image.quantize(4) if format_ == "GIF" else image, format_))
    found = load_image(path)
    assert (found.mode, found.size) == ("RGB", (6, 4))
    np.testing.assert_allclose(np.asarray(found), np.asarray(image), atol=3)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_mode_of_a_png_becomes_the_same_rgb(tmp_path, mode):
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (4, 3)))
    stripes.convert(mode).save(tmp_path / "a.png")
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), stripes.convert("RGB"))


def test_a_cmyk_jpeg_becomes_rgb(tmp_path):
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    np.testing.assert_allclose(np.asarray(load_image(tmp_path / "a.jpg"))[0, 0], (255, 0, 0), atol=10)


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "a.ppm"])
def test_sixteen_bits_of_grey_keep_their_gradient(tmp_path, name):
    grey = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / name)
    found = np.asarray(load_image(tmp_path / name))
    np.testing.assert_allclose(found, np.repeat(grey[..., None] / 257, 3, axis=2), atol=1.01)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_in_exif_is_applied(tmp_path, orientation):
    blocks = np.zeros((32, 64, 3), np.uint8)
    blocks[:16, :32] = (255, 0, 0)
    blocks[16:, 32:] = (0, 0, 255)
    stored = Image.fromarray(blocks)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.jpg", exif=exif, quality=95)
    upright = {
        1: blocks,
        2: blocks[:, ::-1],
        3: blocks[::-1, ::-1],
        4: blocks[::-1],
        5: blocks.transpose(1, 0, 2),
        6: np.rot90(blocks, -1),
        7: blocks.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(blocks, 1),
    }[orientation]
    found = np.asarray(load_image(tmp_path / "a.jpg"))
    assert found.shape == upright.shape
    np.testing.assert_allclose(found[4:-4:8, 4:-4:8].astype(int), upright[4:-4:8, 4:-4:8].astype(int), atol=40)


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tiff"])
def test_transparent_pixels_become_white(tmp_path, name):
    layer = np.zeros((4, 4, 4), np.uint8)
    layer[:2] = (255, 0, 0, 255)
    layer[3] = (0, 0, 0, 128)
    options = {"lossless": True} if name == "a.webp" else {}
    Image.fromarray(layer).save(tmp_path / name, **options)
    found = np.asarray(load_image(tmp_path / name)).astype(int)
    np.testing.assert_array_equal(found[:2], np.broadcast_to((255, 0, 0), (2, 4, 3)))
    np.testing.assert_array_equal(found[2], 255)
    np.testing.assert_allclose(found[3], 127, atol=1)


def test_a_transparent_palette_colour_becomes_white(tmp_path):
    for name in ("a.gif", "a.png"):
        image = Image.new("P", (4, 4), 0)
        image.putpalette([0, 0, 0, 255, 0, 0])
        image.putpixel((1, 1), 1)
        image.save(tmp_path / name, transparency=0)
        found = load_image(tmp_path / name)
        assert found.getpixel((0, 0)) == (255, 255, 255)
        assert found.getpixel((1, 1)) == (255, 0, 0)


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert load_image(tmp_path / "a.gif").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_a_picture_cut_anywhere_is_never_half_a_picture(tmp_path, format_):
    content = encoded(noise(64, 64), format_)
    path = tmp_path / "a.img"
    path.write_bytes(content)
    assert load_image(path).size == (64, 64)
    places = {0, 1, 10, 30, *(len(content) * i // 40 for i in range(40)), len(content) - 2}
    for size in sorted(places):
        path.write_bytes(content[:size])
        expected = {"no content"} if size == 0 else {"wrong format", "truncated", "unreadable"}
        assert reason_of(path) in expected, size


def test_bytes_after_the_end_of_a_picture_do_not_matter(tmp_path):
    for format_ in ("JPEG", "PNG", "GIF", "WEBP", "BMP"):
        path = tmp_path / f"a.{format_}"
        path.write_bytes(encoded(noise(), format_) + b"a note of the camera")
        assert load_image(path).size == noise().size


@pytest.mark.parametrize("content", [b"hello, I am text", b"BMW cars are fast, " * 9, b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_picture_is_of_the_wrong_format(tmp_path, content):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    assert reason_of(path) == "wrong format"


def test_a_picture_of_a_format_that_is_not_allowed_is_of_the_wrong_format(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(noise(), "ICO"))
    assert reason_of(path) == "wrong format"


def test_a_picture_can_be_bytes_or_a_part_of_a_file(tmp_path):
    content = encoded(noise(), "PNG")
    whole = np.asarray(load_image(content))
    (tmp_path / "a.tar").write_bytes(b"x" * 512 + content + b"y" * 512)
    np.testing.assert_array_equal(np.asarray(load_image(Span(tmp_path / "a.tar", 512, len(content)))), whole)
    with pytest.raises(ItemError, match="inside of this member") as caught:
        load_image(Span(tmp_path / "a.tar", 1000, 10_000_000))
    assert caught.value.reason == "truncated"
    with pytest.raises(ItemError, match="zero bytes"):
        load_image(b"")


@pytest.mark.parametrize("side", [6325, 7000, 10_000, 20_000, 2**31 - 1])
def test_a_header_that_declares_too_many_pixels_is_refused_without_decoding(tmp_path, side):
    path = tmp_path / "a.png"
    path.write_bytes(png_header(side, side))
    assert reason_of(path) == "too large"


def test_the_limit_itself_is_allowed(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(noise(24, 16), "PNG"))
    monkeypatch.setattr(media, "MAX_PIXELS", 24 * 16)
    assert load_image(path).size == (24, 16)
    monkeypatch.setattr(media, "MAX_PIXELS", 24 * 16 - 1)
    with pytest.raises(ItemError, match="24 x 16 pixels, the limit is 383") as caught:
        load_image(path)
    assert caught.value.reason == "too large"


def test_a_missing_file_a_folder_and_a_name_that_no_disk_can_hold_are_missing(tmp_path):
    for path in (tmp_path / "no.jpg", tmp_path, tmp_path / ("x" * 5000), tmp_path / "nul\0.jpg"):
        assert reason_of(path) == "missing"


@pytest.mark.parametrize("size", [(1, 60_000), (10_100, 100)])
def test_a_picture_that_no_processor_could_enlarge_is_too_large(size, tmp_path):
    Image.new("RGB", size).save(tmp_path / "a.png")
    with pytest.raises(ItemError, match="more than 100 times as long as wide") as caught:
        load_image(tmp_path / "a.png")
    assert caught.value.reason == "too large"
    Image.new("RGB", (3, 300)).save(tmp_path / "b.png")
    assert load_image(tmp_path / "b.png").size == (3, 300)
