"""A file is cut if it ends before its container says so, and not because it is unusual."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
import soundfile
from PIL import Image

from fusemix.data.complete import check_first_page, check_image, check_sound, check_video
from fusemix.data.images import load_image
from fusemix.data.media import ItemError
from fusemix.data.mp3 import SLACK, count_samples
from fusemix.data.sounds import load_sound
from fusemix.data.videos import load_frames


def picture(format_, **options):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, format_, **options)
    return sink.getvalue()


def sound(format_="MP3", seconds=1.0, rate=16_000, **options):
    noise = np.random.default_rng(0).normal(0, 0.1, int(seconds * rate))
    sink = io.BytesIO()
    soundfile.write(sink, noise, rate, format=format_, **options)
    return sink.getvalue()


def cut(check, content, *arguments):
    """Tell whether a check calls content truncated."""
    try:
        check(io.BytesIO(content), *arguments)
    except ItemError as error:
        assert error.reason == "truncated"
        return True
    return False


# ---- pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
def test_a_picture_is_cut_wherever_it_ends_too_early(format_):
    content = picture(format_)
    assert not cut(check_image, content, format_)
    assert not cut(check_image, content + b"\xff\xd9;IEND and more" * 9000, format_)
    assert all(cut(check_image, content[:size], format_) for size in range(20, len(content), 7))
    assert cut(check_image, content[:-1], format_)


def test_a_check_leaves_the_file_where_it_was():
    file = io.BytesIO(picture("PNG"))
    file.seek(7)
    check_image(file, "PNG")
    assert file.tell() == 7


def test_the_end_mark_of_a_thumbnail_is_not_that_of_the_picture():
    small = picture("JPEG")[:500] + b"\xff\xd9"
    whole = picture("JPEG", exif=b"Exif\0\0" + small)
    place = whole.index(small) + len(small)
    assert not cut(check_image, whole + b"film", "JPEG")
    assert cut(check_image, whole[: place + 200], "JPEG")


def test_padding_between_the_blocks_of_a_gif_is_allowed():
    content = picture("GIF")
    assert not cut(check_image, content[:-1] + b"\0\0\0;", "GIF")
    assert cut(check_image, content[:-1] + b"\0\0\0", "GIF")


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_the_later_pages_of_a_tiff_must_be_there(big, compression):
    pages = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 60), dtype=np.uint8)) for i in range(3)]
    sink = io.BytesIO()
    pages[0].save(sink, "TIFF", save_all=True, append_images=pages[1:], big_tiff=big, compression=compression)
    content = sink.getvalue()
    assert load_image(content).size == (60, 40)
    for size in range(100, len(content) - 20, 97):  # Pillow pads the end
        with pytest.raises(ItemError) as caught:
            load_image(content[:size])
        assert caught.value.reason == "truncated"


def test_a_tiff_whose_directories_run_in_a_circle_ends():
    content = bytearray(picture("TIFF"))
    start = struct.unpack_from("<I", content, 4)[0]
    entries = struct.unpack_from("<H", content, start)[0]
    struct.pack_into("<I", content, start + 2 + 12 * entries, start)
    assert not cut(check_image, bytes(content), "TIFF")


# ---- sounds ----------------------------------------------------------------------------------------------------------


def riff(*chunks, declared=None, order="<"):
    body = b"".join(name + struct.pack(f"{order}I", size) + content for name, size, content in chunks)
    head = b"RIFF" if order == "<" else b"RIFX"
    return head + struct.pack(f"{order}I", len(body) + 4 if declared is None else declared) + b"WAVE" + body


FORM = (b"fmt ", 16, struct.pack("<HHIIHH", 1, 1, 8000, 16_000, 2, 16))
DATA = (b"data", 100, bytes(100))


@pytest.mark.parametrize("content", [
    riff(FORM, DATA),
    riff(FORM, DATA, declared=0),
    riff(FORM, DATA, declared=0xFFFFFFFF),
    riff(FORM, DATA, declared=8 + 4 + 24 + 108),  # counts its own header
    riff(FORM, (b"data", 0xFFFFFFFF, bytes(100))),  # a stream
    riff(FORM, (b"data", 0, bytes(100))),
    riff((b"LIST", 200_000, bytes(200_000)), FORM, DATA),
    riff(FORM, DATA, (b"LIST", 4, b"INFO")) + b"more",
    riff(FORM, DATA, order=">"),
])  # fmt: skip
def test_a_whole_wav_file_is_whole_however_it_counts(content):
    assert not cut(check_sound, content, "WAV")


@pytest.mark.parametrize("content", [
    riff(FORM, DATA)[:-1],
    riff(FORM, (b"data", 101, bytes(100))),
    riff(FORM, DATA, (b"LIST", 4, b"INFO"))[:-2],
    riff(FORM),
    riff(FORM, DATA, order=">")[:-1],
    b"RIFF",
])  # fmt: skip
def test_a_wav_file_that_ends_too_early_is_cut(content):
    assert cut(check_sound, content, "WAV")


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_file_ends_with_a_whole_page_that_says_so(subtype):
    content = sound("OGG", 3, subtype=subtype)
    last = content.rindex(b"OggS")
    assert not cut(check_sound, content, "OGG")
    assert not cut(check_sound, content + b"junk", "OGG")
    assert cut(check_sound, content[:last], "OGG")
    assert all(cut(check_sound, content[:size], "OGG") for size in range(last + 1, len(content)))


@pytest.mark.parametrize("rate", [8000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_the_samples_of_an_mp3_file_are_counted_exactly(rate, mode):
    content = sound(rate=rate, bitrate_mode=mode)
    decoded = len(soundfile.read(io.BytesIO(content))[0])
    assert abs(count_samples(io.BytesIO(content)) - decoded) <= SLACK


def test_tags_around_an_mp3_file_are_no_frames():
    content = sound()
    count = count_samples(io.BytesIO(content))
    picture_tag = b"ID3\3\0\0\0\0\7\x68" + b"\xff\xfb\x90\0Info" * 125
    for whole in (
        picture_tag + content, picture_tag * 2 + content, content + b"TAG" + bytes(125),
        content + b"APETAGEX" + b"\xff\xfb\x90\0" * 50, content + bytes(500),
    ):  # fmt: skip
        assert count_samples(io.BytesIO(whole)) == count
        load_sound(whole)
    assert count_samples(io.BytesIO(b"junk" * 30 + content)) == count


def mpeg(frames, header):
    """Frames of 44.1 kHz, 128 kbit/s (417 bytes), with a header of a count in the first."""
    frame = b"\xff\xfb\x90\0" + bytes(413)
    first = bytearray(frame)
    first[36 : 36 + len(header)] = header
    return bytes(first) + frame * (frames - 1)


def test_an_mp3_file_without_any_count_is_cut_only_inside_of_a_frame():
    content = mpeg(10, b"")
    found = [size for size in range(4, len(content) + 1) if not cut(count_samples, content[:size])]
    assert found == [417 * (i + 1) for i in range(10)]  # at the border of two frames nothing says that there were more


@pytest.mark.parametrize("header", [
    b"Xing" + struct.pack(">II", 1, 9),
    b"Info" + struct.pack(">III", 3, 9, 10 * 417),
    b"Xing" + struct.pack(">II", 2, 10 * 417),
    b"VBRI" + struct.pack(">HHHII", 1, 0, 0, 10 * 417, 9),
])  # fmt: skip
def test_an_mp3_file_has_the_frames_that_it_declares(header):
    assert count_samples(io.BytesIO(mpeg(10, header))) == 10 * 1152
    assert cut(count_samples, mpeg(8, header))


# ---- videos ----------------------------------------------------------------------------------------------------------


def box(name, content, large=False):
    size = len(content) + (16 if large else 8)
    return (struct.pack(">I4sQ", 1, name, size) if large else struct.pack(">I4s", size, name)) + content


def test_the_boxes_of_an_mp4_file_end_within_it():
    whole = box(b"ftyp", b"isom") + box(b"moov", bytes(50)) + box(b"mdat", bytes(100), large=True)
    assert not cut(check_video, whole)
    assert not cut(check_video, whole + bytes(20))
    assert not cut(check_video, box(b"ftyp", b"isom") + box(b"moov", b"") + b"\0\0\0\0mdat" + bytes(99))
    assert cut(check_video, whole[:-1])
    assert cut(check_video, box(b"ftyp", b"isom") + box(b"mdat", bytes(100)))


def test_the_segment_of_a_matroska_file_ends_within_it():
    head = b"\x1a\x45\xdf\xa3\x84abcd" + b"\xec\x82ab"
    whole = head + b"\x18\x53\x80\x67\x01\0\0\0\0\0\0\x10" + bytes(16)
    assert not cut(check_video, whole)
    assert cut(check_video, whole[:-1])
    assert not cut(check_video, head + b"\x18\x53\x80\x67\x01" + b"\xff" * 7)  # a stream, of unknown size


def test_an_avi_file_may_be_a_row_of_riff_chunks():
    part = b"RIFF" + struct.pack("<I", 20) + b"AVI " + bytes(16)
    assert not cut(check_video, part + part)
    assert cut(check_video, (part + part)[:-1])


# ---- anything --------------------------------------------------------------------------------------------------------


def test_nothing_but_an_item_error_comes_of_any_bytes():
    rng = random.Random(0)
    seeds = [picture(kind) for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")]
    seeds += [picture("TIFF", compression="tiff_lzw", big_tiff=True)]
    seeds += [sound("WAV"), sound("FLAC"), sound("OGG"), sound("MP3"), sound("MP3", bitrate_mode="CONSTANT")]
    seeds += [b"\0\0\0\x10ftypisom" + bytes(30), b"\x1a\x45\xdf\xa3" + bytes(30), b"RIFF\x10\0\0\0AVI " + bytes(30)]
    checks = [(check_image, kind) for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")]
    checks += [(check_sound, "WAV"), (check_sound, "OGG"), (check_first_page,), (check_video,), (count_samples,)]
    for _ in range(300):
        content = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(min(120, len(content))) if rng.random() < 0.8 else rng.randrange(len(content))
            content[place : place + rng.choice((1, 2, 4, 8))] = rng.randbytes(rng.choice((0, 1, 2, 4, 8)))
        content = bytes(content[: rng.choice((len(content), rng.randrange(1, len(content) + 1)))])
        for check, *arguments in checks:
            cut(check, content, *arguments)
        for load in (load_image, load_sound, load_frames):
            with pytest.raises(ItemError) if load is load_frames else io.BytesIO():
                try:
                    load(content)
                except ItemError:
                    if load is load_frames:
                        raise


def test_a_png_needs_its_last_chunk_whole():
    chunk = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    assert picture("PNG").endswith(chunk)
    assert cut(check_image, picture("PNG")[: -len(chunk)], "PNG")
