"""Damaged, cut and clean media through the decoders of fusemix: every item has its outcome, and the right one.

python benchmarks/torture_media.py [--small] [--clean FOLDER ...]

All files are made on the spot, with as many options of their encoders as there are. `--clean` adds all media of real
folders to the clean ones; name what is known to be whole.
"""

import argparse
import io
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import av
import numpy as np
import soundfile
from PIL import Image

from fusemix.data import decoding
from fusemix.data.decoding import Decoders
from fusemix.data.media import AUDIO_SUFFIXES, IMAGE_SUFFIXES, VIDEO_SUFFIXES, ItemError, Reason
from goals import leave, result

IMAGES = ("jpg", "png", "gif", "webp", "bmp", "tif")
SOUNDS = ("wav", "flac", "ogg", "mp3")
EIGHT = ("jpg", "png", "gif", "webp", *SOUNDS)
MORE = ("bmp", "tif", "opus", "mp4", "mov", "webm", "mkv", "avi")
CUTS = 10  # of every file
LIMIT = 10.0  # seconds for one item


def main() -> None:
    """Run all, and print a RESULT line per goal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="less than 20 seconds")
    parser.add_argument("--clean", nargs="+", type=Path, default=[], metavar="FOLDER", help="of media that are whole")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    decoding.TIMEOUT = LIMIT
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mutated(folder, 400 if options.small else 10_000, rng)
        truncated(folder, EIGHT, 2 if options.small else 20, rng)
        truncated(folder, MORE, 1 if options.small else 20, rng)
        clean(folder, 150 if options.small else 2000, rng)
        if options.clean:
            found = sorted(path for root in options.clean for path in root.rglob("*") if form_of(path))
            judge_clean("clean real media: false alarms", found)
        evil(folder, 2 if options.small else 30)


# ---- goals -----------------------------------------------------------------------------------------------------------


def mutated(folder: Path, count: int, rng: random.Random) -> bool:
    """Flip, insert and remove bytes: whatever comes out, something does, for every single item."""
    kinds = [*IMAGES, *SOUNDS]
    sources = {kind: [make(kind, rng) for _ in range(4)] for kind in kinds}
    paths = []
    for i in range(count):
        kind = kinds[i % len(kinds)]
        path = folder / f"mutant-{i}.{kind}"
        path.write_bytes(mutate(rng.choice(sources[kind]), rng))
        paths.append(path)
    found = outcomes(paths)
    tally = Counter(outcome for outcome, _ in found)
    print(dict(tally.most_common()))
    for path, (outcome, message) in zip(paths, found, strict=True):
        if outcome in ("raised", "decoder crashed", "timed out"):
            kept = Path(tempfile.mkdtemp()) / path.name
            kept.write_bytes(path.read_bytes())
            print(f"{kept}: {outcome}: {message}")
    failed = sum(n for outcome, n in tally.items() if outcome in get_args(Reason))
    accounted = tally["ok"] + failed
    lost = tally["decoder crashed"] + tally["timed out"]
    return all([
        result("mutated media: ok + failed", accounted, f"== {count}", lambda n: n == count),
        result(f"mutated media: decoders that died or took over {LIMIT:g} s", lost, "== 0", lambda n: n == 0),
    ])  # fmt: skip


def truncated(folder: Path, kinds: tuple[str, ...], files: int, rng: random.Random) -> bool:
    """Cut files at ten places, the last few bytes among them: each must be reported."""
    paths = []
    for kind in kinds:
        for number in range(files):
            content = make(kind, rng)
            for cut in cuts(len(content), rng):
                path = folder / f"cut-{number}-{cut}.{kind}"
                path.write_bytes(content[:cut])
                paths.append(path)
    found = outcomes(paths)
    for path, (outcome, message) in zip(paths, found, strict=True):
        if outcome not in ("truncated", "unreadable", "wrong format", "no content"):
            print(f"{path.name}: {outcome} {message}")
    print(dict(Counter(outcome for outcome, _ in found).most_common()))
    reported = sum(outcome in get_args(Reason) for outcome, _ in found)
    return result(f"truncated {', '.join(kinds)}: reported", reported, f"== {len(paths)}", lambda n: n == len(paths))


def cuts(size: int, rng: random.Random) -> list[int]:
    """Ten lengths of a file that are less than it has, from its first bytes to its last."""
    places = {rng.randint(1, 40), size - 1, size - rng.randint(2, 40)}
    while len(places) < min(CUTS, size - 1):
        places.add(rng.randrange(1, size))
    return sorted(place for place in places if 0 < place < size)


def clean(folder: Path, count: int, rng: random.Random) -> bool:
    """Whole files are not called damaged."""
    kinds = [*EIGHT, *MORE, "mpg"]
    paths = [folder / f"clean-{i}.{kinds[i % len(kinds)]}" for i in range(count)]
    for path in paths:
        path.write_bytes(make(path.suffix[1:], rng, harmless=True))
    return judge_clean("clean media: false alarms", paths)


def judge_clean(name: str, paths: list[Path]) -> bool:
    """Count what fails; at most one in a thousand may."""
    alarms = 0
    for path, (outcome, message) in zip(paths, outcomes(paths), strict=True):
        if outcome != "ok":
            alarms += 1
            print(f"{path.name}: {outcome}: {message}")
    print(f"{len(paths):,} clean files")
    return result(name, alarms, f"<= {len(paths) // 1000}", lambda n: n <= len(paths) // 1000)


EVIL = """
import os, time
import numpy as np
from fusemix.data import worker

def evil(source):
    word = source.read_text()
    if word == "crash":
        os.abort()
    if word == "hang":
        time.sleep(1000)
    if word == "eat":
        np.ones(1 << 32, np.uint8)
    return {}, [np.zeros((2, 2, 3), np.uint8)]

worker.FORMS["evil"] = evil
worker.main()
"""


def evil(folder: Path, count: int) -> bool:
    """Decoders that crash, hang or allocate 4 GB, among three times as many good ones."""
    fates = {"crash": "decoder crashed", "hang": "timed out", "eat": "too large", "good": "ok"}
    words = ["crash", "good", "hang", "good", "eat", "good"] * count + ["good"] * 6 * count
    random.Random(0).shuffle(words)
    (folder / "evil.py").write_text(EVIL)
    paths = [folder / f"{i}.evil" for i in range(len(words))]
    for path, word in zip(paths, words, strict=True):
        path.write_text(word)
    before = decoding.COMMAND, decoding.TIMEOUT
    decoding.COMMAND, decoding.TIMEOUT = [sys.executable, str(folder / "evil.py")], 1.0
    try:
        found = [outcome for outcome, _ in outcomes(paths, "evil")]
    finally:
        decoding.COMMAND, decoding.TIMEOUT = before
    right = sum(outcome == fates[word] for outcome, word in zip(found, words, strict=True))
    name = f"{3 * count} decoders that crash, hang or swallow memory among {len(words)} items: right outcomes"
    return result(name, right, f"== {len(words)}", lambda n: n == len(words))


def outcomes(paths: list[Path], form: str | None = None) -> list[tuple[str, str]]:
    """Decode files: "ok" and what came, or the reason and the message."""
    started, found = time.perf_counter(), []
    with Decoders() as decoders:
        futures = [decoders.submit(form or form_of(path), path) for path in paths]
        for future in futures:
            try:
                future.result()
                found.append(("ok", ""))
            except ItemError as error:
                found.append((error.reason, str(error)))
            except Exception as error:
                found.append(("raised", f"{type(error).__name__}: {error}"))
    print(f"{len(paths) / (time.perf_counter() - started):,.0f} items/s")
    return found


def form_of(path: Path) -> str:
    """What a file is decoded to, by its name; "" where it is no media file."""
    for form, suffixes in (("image", IMAGE_SUFFIXES), ("audio", AUDIO_SUFFIXES), ("video", VIDEO_SUFFIXES)):
        if path.suffix.lower() in suffixes:
            return form
    return ""


# ---- files -----------------------------------------------------------------------------------------------------------


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Damage content in one to four places; most of them early, where the headers are."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(min(200, len(changed))) if rng.random() < 0.6 else rng.randrange(len(changed))
        size = rng.choice((1, 1, 2, 4, 8, 64, 512))
        way = rng.randrange(6)
        if way == 0:
            changed[place] ^= 1 << rng.randrange(8)
        elif way == 1:
            changed[place : place + size] = rng.randbytes(size)
        elif way == 2:
            changed[place : place + size] = rng.choice((b"\0", b"\xff", b"\x7f")) * size
        elif way == 3:
            del changed[place : place + size]
        elif way == 4:
            changed[place:place] = changed[place : place + size]
        else:
            del changed[max(1, place) :]
        changed = changed or bytearray(b"\0")
    return bytes(changed)


def make(kind: str, rng: random.Random, harmless: bool = False) -> bytes:
    """Encode a file of a kind with options by chance; harmless adds what may come behind the end of a whole file."""
    if kind in IMAGES:
        content = make_image(kind, rng, harmless)
    elif kind in (*SOUNDS, "opus"):
        content = make_sound(kind, rng, harmless)
    else:
        content = make_video(kind, rng, harmless)
    if harmless and kind in ("jpg", "png", "gif", "webp", "bmp") and rng.random() < 0.3:
        content += rng.randbytes(rng.choice((1, 100, 200_000)))  # a note, a film of the camera
    return content


def make_image(kind: str, rng: random.Random, harmless: bool) -> bytes:
    """Encode a picture that is partly smooth and partly noise."""
    random_ = np.random.default_rng(rng.randrange(1 << 30))
    width, height = rng.randint(20, 160), rng.randint(20, 160)
    smooth = Image.fromarray(random_.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((width, height))
    pixels = np.asarray(smooth) + random_.integers(-20, 20, (height, width, 3)) * (rng.random() < 0.7)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    modes = {
        "jpg": ("RGB", "L", "CMYK"), "png": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"), "gif": ("P", "L"),
        "webp": ("RGB", "RGBA"), "bmp": ("RGB", "L", "P", "1", "RGBA"), "tif": ("RGB", "RGBA", "L", "P", "1", "CMYK"),
    }  # fmt: skip
    mode = rng.choice(modes[kind])
    image = Image.fromarray(np.asarray(image.convert("L"), dtype=np.uint16) * 257) if mode == "I;16" else image
    image = image if mode == "I;16" else image.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = rng.randint(1, 8)
    several = {"save_all": True, "append_images": [image.rotate(90)]} if rng.random() < 0.3 else {}
    if kind == "tif" and not harmless:
        several = {}  # Pillow pads behind the last page: nothing is missing where that is cut
    options: dict[str, Any] = {
        "jpg": {
            "quality": rng.choice((30, 75, 95)), "progressive": rng.random() < 0.5, "optimize": rng.random() < 0.3,
            "exif": exif, "restart_marker_blocks": rng.choice((0, 0, 3)),
        },
        "png": {"compress_level": rng.choice((0, 1, 6, 9)), "exif": exif, **several},
        "gif": {"interlace": rng.randrange(2), **several},
        "webp": {"lossless": rng.random() < 0.4, "exif": exif, **several},
        "bmp": {},
        "tif": tiff_options(mode, rng) | several,
    }[kind]  # fmt: skip
    sink = io.BytesIO()
    image.save(sink, {"jpg": "JPEG", "tif": "TIFF"}.get(kind, kind.upper()), **options)
    return sink.getvalue()


def tiff_options(mode: str, rng: random.Random) -> dict[str, Any]:
    """Choose a compression that can hold a mode."""
    compressions = [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"]
    compressions += {"1": ["group4"], "RGB": ["jpeg"], "L": ["jpeg"]}.get(mode, [])
    return {"compression": rng.choice(compressions), "big_tiff": rng.random() < 0.2}


def make_sound(kind: str, rng: random.Random, harmless: bool) -> bytes:
    """Encode a tone in noise."""
    rate = rng.choice((16_000, 24_000, 48_000) if kind == "opus" else (8_000, 16_000, 22_050, 44_100))
    seconds, channels = rng.uniform(0.3, 1.5), rng.choice((1, 1, 2))
    samples = tone(rate, int(rate * seconds), rng)[:, None].repeat(channels, axis=1)
    subtypes = {
        "wav": ("PCM_16", "PCM_24", "PCM_U8", "FLOAT", "DOUBLE", "ULAW", "IMA_ADPCM", "MS_ADPCM"),
        "flac": ("PCM_16", "PCM_24", "PCM_S8"), "ogg": ("VORBIS",), "opus": ("OPUS",), "mp3": ("MPEG_LAYER_III",),
    }  # fmt: skip
    options: dict[str, Any] = {"subtype": rng.choice(subtypes[kind])}
    if kind in ("flac", "ogg", "mp3"):
        options["compression_level"] = rng.random()
    if kind == "mp3":
        options["bitrate_mode"] = rng.choice(("CONSTANT", "AVERAGE", "VARIABLE"))
    sink = io.BytesIO()
    format_ = {"opus": "OGG"}.get(kind, kind.upper())
    soundfile.write(sink, samples, rate, format=format_, **options)
    content = sink.getvalue()
    if kind == "mp3" and rng.random() < 0.5:  # a tag with a picture in front, an old one behind
        tag = rng.randbytes(rng.randint(100, 3000)).replace(b"\xff", b"\0")
        length = bytes(len(tag) >> shift & 127 for shift in (21, 14, 7, 0))
        content = b"ID3\3\0\0" + length + tag + content
        if harmless:
            content += b"TAG" + bytes(125)
    return content


def tone(rate: int, count: int, rng: random.Random) -> np.ndarray[Any, Any]:
    """A tone in noise, (count,)."""
    noise = np.random.default_rng(rng.randrange(1 << 30)).normal(0, 0.02, count)
    return np.sin(2 * np.pi * rng.uniform(100, 1000) * np.arange(count) / rate) * 0.5 + noise


CODECS = {
    "mp4": (("libx264", "mpeg4"), "aac"),
    "mov": (("libx264", "mpeg4"), "aac"),
    "mkv": (("libx264", "mpeg4", "libvpx"), "aac"),
    "webm": (("libvpx", "libvpx-vp9"), "libopus"),
    "avi": (("mpeg4", "mjpeg"), "mp2"),
    "mpg": (("mpeg1video", "mpeg2video"), "mp2"),
}


def make_video(kind: str, rng: random.Random, harmless: bool) -> bytes:
    """Encode moving noise, with or without sound."""
    codecs, voice = CODECS[kind]
    codec, frames = rng.choice(codecs), rng.randint(12, 40)
    flags = [None, "faststart", *(["frag_keyframe+empty_moov"] if harmless else [])]
    flag = rng.choice(flags) if kind in ("mp4", "mov") else None
    options = {"movflags": flag} if flag else {}
    with tempfile.NamedTemporaryFile(suffix=f".{kind}") as file:
        with av.open(file.name, "w", options=options) as container:
            video = container.add_stream(codec, rate=24)
            video.width, video.height = 64, 48
            video.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            if codec not in ("mjpeg", "libvpx", "libvpx-vp9"):
                video.codec_context.max_b_frames = rng.choice((0, 2))
            video.codec_context.gop_size = rng.choice((5, 12, 100))
            sound = container.add_stream(voice, rate=48_000) if rng.random() < 0.6 else None
            pixels = np.random.default_rng(rng.randrange(1 << 30)).integers(0, 256, (48, 64, 3), dtype=np.uint8)
            for i in range(frames):
                frame = av.VideoFrame.from_ndarray(np.roll(pixels, i, axis=1), format="rgb24")
                frame.pts = i
                container.mux(video.encode(frame))
            container.mux(video.encode())
            if sound is not None:
                add_sound(container, sound, frames * 2000, rng)
        return Path(file.name).read_bytes()


def add_sound(container: Any, stream: Any, count: int, rng: random.Random) -> None:
    """Encode `count` samples of a tone at 48 kHz."""
    fifo = av.AudioFifo()
    samples = tone(48_000, count, rng).astype(np.float32)[None]
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
    frame.rate = 48_000
    fifo.write(frame)
    size = stream.codec_context.frame_size or 1024
    resampler = av.AudioResampler(format=stream.codec_context.format, layout=stream.codec_context.layout, rate=48_000)
    place = 0
    while (part := fifo.read(size, partial=True)) is not None:
        part.pts = place
        place += part.samples
        for plain in resampler.resample(part):
            container.mux(stream.encode(plain))
    container.mux(stream.encode())


if __name__ == "__main__":
    main()
    leave()
