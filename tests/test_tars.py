"""WebDataset tars: samples by their keys, media as parts of the tar, and whatever a hostile or damaged tar may hold."""

import io
import json
import struct
import tarfile
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusemix.data.items import content_hash
from fusemix.data.media import Span
from fusemix.data.pairs import read_pairs
from fusemix.data.sources import read_source
from fusemix.data.tars import read_tars
from fusemix.errors import DataError

GOOD = {"1.jpg": b"picture 1", "1.txt": b"kite", "2.jpg": b"picture 2", "2.txt": b"dog"}


def tar(path, files, form=tarfile.PAX_FORMAT):
    """Write files by name, or TarInfo and content; the last bytes are the end of a tar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in files.items() if isinstance(files, dict) else files:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if not isinstance(name, tarfile.TarInfo):
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def info(name, kind=tarfile.REGTYPE, **facts):
    member = tarfile.TarInfo(name)
    member.type = kind
    for fact, value in facts.items():
        setattr(member, fact, value)
    return member


def content_of(items, i):
    source = items.source(i)
    assert isinstance(source, Span)
    return source.path.read_bytes()[source.offset : source.offset + source.size]


def refusal(source, **options):
    with pytest.raises(DataError) as caught:
        read_source(source, **options)
    return str(caught.value)


def test_members_of_one_key_are_a_row_and_media_are_parts_of_the_tar(tmp_path):
    path = tar(tmp_path / "shards" / "000.tar", GOOD)
    pairs = read_pairs(path)
    image = pairs.items["image"]
    assert image.kind == "image"
    assert image.ids == ["000.tar/1.jpg", "000.tar/2.jpg"]
    assert image.values == ["000.tar#512+9", "000.tar#2560+9"]
    assert image.source(1) == Span(path, 2560, 9)
    assert [content_of(image, i) for i in range(2)] == [b"picture 1", b"picture 2"]
    assert pairs.items["text"].values == ["kite", "dog"]
    assert pairs.table.to_pydict() == {"key": ["1", "2"], "image": image.ids, "text": ["kite", "dog"]}
    assert pairs.problems == []


@pytest.mark.parametrize("form", ["shards", "shards/*.tar", "shards/{000..002}.tar", "sh*/00?.tar"])
def test_a_folder_a_glob_and_a_range_are_the_same_tars(tmp_path, monkeypatch, form):
    for i in range(3):
        tar(tmp_path / "shards" / f"00{i}.tar", {"1.jpg": b"%d" % i, "1.txt": b"%d" % i})
    monkeypatch.chdir(tmp_path)
    items = read_pairs(form).items["image"]
    below = "shards/" if form.startswith("sh*") else ""
    assert items.ids == [f"{below}00{i}.tar/1.jpg" for i in range(3)]
    assert [content_of(items, i) for i in range(3)] == [b"0", b"1", b"2"]
    assert read_pairs(form, root=".").items["image"].ids == [f"shards/00{i}.tar/1.jpg" for i in range(3)]


def test_the_same_key_in_two_tars_is_two_samples(tmp_path):
    for name in ("a.tar", "deep/b.tar"):
        tar(tmp_path / name, GOOD)
    pairs = read_pairs(tmp_path)
    assert len(pairs) == 4
    assert pairs.rows["image"].tolist() == [0, 1, 2, 3]
    assert pairs.rows["text"].tolist() == [0, 1, 0, 1]


def test_a_missing_tar_of_a_range_and_a_glob_without_match_are_refused(tmp_path):
    tar(tmp_path / "0.tar", GOOD)
    assert "1 of 2 are missing, first" in refusal(tmp_path / "{0..1}.tar")
    assert "no range of less than" in refusal(tmp_path / "{5..1}.tar")
    assert f"no such files (looked in {tmp_path})" in refusal(tmp_path / "x*.tar")
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    assert "t.csv is not a .tar" in refusal(tmp_path / "*")


def test_a_root_must_hold_the_tars(tmp_path):
    path = tar(tmp_path / "shards" / "0.tar", GOOD)
    assert read_pairs(path, root=tmp_path).items["image"].ids[0] == "shards/0.tar/1.jpg"
    assert "is not below the root" in refusal(path, root=tmp_path / "other")


def test_columns_follow_suffixes_and_fields(tmp_path):
    files = {
        "./a/1.JPG": b"i", "a/1.flac": b"s", "a/1.mp4": b"v", "a/1.left.png": b"l", "a/1.dcm": b"d", "a/1.cls": b"3\n",
        "a/1.json": json.dumps({"n": 1, "ok": True, "caption": "c", "list": [1], "none": None, "key": "k"}).encode(),
        "a/2.json": json.dumps({"n": 1.5, "big": 10**30, "ok": "no", "\ud800": "\udc00"}).encode(),
        "README": b"", "a/._1.jpg": b"", "a/.hidden.jpg": b"",
    }  # fmt: skip
    reading = read_source(tar(tmp_path / "0.tar", files))
    one, two = reading.table.to_pylist()
    assert reading.problems == []
    assert one == {
        "key": "a/1", "image": "0.tar/a/1.JPG", "audio": "0.tar/a/1.flac", "video": "0.tar/a/1.mp4", "n": 1.0,
        "ok": "True", "caption": "c", "none": None, "cls": "3", "left.png": "0.tar/a/1.left.png",
        "dcm": "0.tar/a/1.dcm", "big": None, "?": None, "text": "c",
    }  # fmt: skip
    assert (two["key"], two["n"], two["big"], two["ok"], two["?"]) == ("a/2", 1.5, str(10**30), "no", "?")
    pairs = read_pairs(tmp_path / "0.tar", photo="image", left="left.png", scan="dcm", sound="audio", film="video")
    kinds = {name: items.kind for name, items in pairs.items.items()}
    assert kinds == {"photo": "image", "left": "image", "scan": "file", "sound": "audio", "film": "video"}


def test_class_numbers_are_the_text_where_there_is_no_other(tmp_path):
    files = {"1.jpg": b"i", "1.cls": b"3", "2.jpg": b"i", "2.cls": b"4"}
    assert read_source(tar(tmp_path / "0.tar", files)).table["text"].to_pylist() == ["3", "4"]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_large_keys_of_every_format_are_read(tmp_path, form):
    names = ["short", "d" * 60 + "/" + "n" * 90]
    names += [] if form == tarfile.USTAR_FORMAT else ["e" * 300 + "/" + "ü" * 300]
    files = {f"{name}.{suffix}": name.encode() for name in names for suffix in ("jpg", "txt")}
    pairs = read_pairs(tar(tmp_path / "0.tar", files, form))
    assert pairs.problems == []
    assert pairs.table["key"].to_pylist() == names
    assert [content_of(pairs.items["image"], i).decode() for i in range(len(names))] == names


def test_sizes_in_pax_records_are_followed(tmp_path):
    """Files of more than 8 GB have the size 0 in their header."""
    large = pax(b"9 size=9\n") + header("1.jpg") + b"picture 1" + bytes(503)
    (tmp_path / "0.tar").write_bytes(large + tar(tmp_path / "1.tar", {"1.txt": b"kite"}).read_bytes())
    pairs = read_pairs(tmp_path / "0.tar")
    assert content_of(pairs.items["image"], 0) == b"picture 1"
    assert pairs.problems == []


def test_each_row_keeps_its_own_content(tmp_path):
    """No row shifts, whatever is missing, unreadable or twice."""
    for shard in range(4):
        files = []
        for i in range(250):
            word = f"{shard}/{i}"
            picture, text = (f"{i}.jpg", f"picture {word}".encode()), (f"{i}.txt", f"caption {word}".encode())
            files += [picture] * (i % 7 != 0) + [text] * (i % 11 != 0) + [picture] * (i % 13 == 0)
            files += [(info(f"{i}.png", tarfile.SYMTYPE, linkname="/etc/passwd"), b"")] * (i % 5 == 0)
            files += [(f"{i}.caption.pkl", b"cos\nsystem\n")] * (i % 3 == 0)
        tar(tmp_path / f"{shard}.tar", files)
    pairs = read_pairs(tmp_path)
    image, text = pairs.items["image"], pairs.items["text"]
    seen = 0
    for key, i, t in zip(pairs.table["key"].to_pylist(), pairs.rows["image"], pairs.rows["text"], strict=True):
        word = text.values[t].removeprefix("caption ") if t >= 0 else content_of(image, i).decode()[8:]
        assert word.rpartition("/")[2] == key
        assert i < 0 or content_hash(content_of(image, i)) == content_hash(f"picture {word}".encode())
        assert (i < 0) == (int(key) % 7 == 0 != int(key) % 13)
        assert (t < 0) == (int(key) % 11 == 0)
        seen += 1
    assert seen == 4 * sum(bool(i % 7 or i % 11 or i % 13 == 0) for i in range(250))
    reasons = [problem.reason for problem in pairs.problems]
    assert reasons.count("duplicate") == 4 * sum(i % 13 == 0 and i % 7 != 0 for i in range(250))
    assert reasons.count("wrong format") == 4 * (50 + 84)


def sparse(name):
    member = info(name, tarfile.GNUTYPE_SPARSE, size=512)
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    block[386:410] = b"00000000000\0" + b"00000001000\0"
    block[482] = 1
    block[483:495] = b"00000010000\0"
    return signed(block) + bytes(512) + b"x" * 512


def signed(block):
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def header(name, kind=b"0", size=b"00000000000\0"):
    block = bytearray(info(name).tobuf(tarfile.GNU_FORMAT))
    block[124:136], block[156:157] = size, kind
    return signed(block)


def pax(content):
    return header("pax", b"x", b"%011o\0" % len(content)) + content + bytes(-len(content) % 512)


LINKS = {
    "symlink": (tarfile.SYMTYPE, "/etc/passwd"), "symlink up": (tarfile.SYMTYPE, "../x"),
    "hardlink": (tarfile.LNKTYPE, "1.jpg"), "hardlink out": (tarfile.LNKTYPE, "/etc/passwd"),
    "device": (tarfile.CHRTYPE, ""), "disk": (tarfile.BLKTYPE, ""), "pipe": (tarfile.FIFOTYPE, ""),
}  # fmt: skip
NAMES = [
    "../3.jpg", "a/../../3.jpg", "/3.jpg", "//3.jpg", "/etc/cron.d/3.jpg", "..\\3.jpg", "\\\\host\\3.jpg", "a/..", "..",
    "3\n.jpg", "3\x1b[31m.jpg", "3\x7f.jpg",
]  # fmt: skip
PICKLES = ["pkl", "pickle", "pyd", "pth", "pt", "npy", "npz", "PKL", "jpg.pkl", "json.pth", "ckpt", "joblib", "model"]
BLOCKS = {
    "negative size": header("3.jpg", size=b"\xff" * 11 + b"\x00"),
    "very negative size": header("3.jpg", size=b"\xff" + bytes(11)),
    "minus in octal": header("3.jpg", size=b"-0000000001\0"),
    "huge size": header("3.jpg", size=b"\x80" + b"\x7f" * 11),
    "8 GB": header("3.jpg", size=b"77777777777\0"),
    "no number": header("3.jpg", size=b"hello world\0"),
    "bad checksum": header("3.jpg")[:148] + b"0000000\0" + header("3.jpg")[156:],
    "noise": bytes(range(256)) * 2,
    "huge long name": header("x", b"L", b"77777777777\0"),
    "long name of 2 MB": header("x", b"L", b"%011o\0" % (2 << 20)) + b"n" * (2 << 20),
    "negative pax size": pax(b"12 size=-512\n") + header("3.jpg"),
    "pax size of words": pax(b"13 size=hello\n") + header("3.jpg", size=b"00000000001\0"),
    "huge pax size": pax(b"27 size=99999999999999999\n") + header("3.jpg", size=b"00000000001\0"),
    "pax without length": pax(b"path=x\n"),
    "pax of length 0": pax(b"0 path=x\n"),
    "pax beyond its end": pax(b"99999 path=x\n"),
    "pax of digits": pax(b"1" * 500_000),
    "global pax that is long": header("x", b"g", b"77777777777\0"),
    "pax without a member": pax(b"10 path=x\n"),
    "sparse map without end": header("3.jpg", tarfile.GNUTYPE_SPARSE)[:482] + b"\1" + bytes(29),
}
CHAINS = {
    "a thousand long names": (header("x", b"L", b"00000000002\0") + b"y\0" + bytes(510)) * 1000 + header("3.jpg"),
    "a thousand pax headers": pax(b"10 path=y\n") * 1000 + header("3.jpg"),
    "unknown type": header("3.jpg", b"Q"),
    "sparse": sparse("3.jpg"),
    "sparse of pax": pax(b"22 GNU.sparse.major=1\n") + header("3.jpg"),
    "path in pax": pax(b"18 path=../../x.y\n") + header("3.jpg"),
    "path of bytes in pax": pax(b"12 path=\xff.j\n") + header("3.jpg"),
}


def watched(tmp_path, path):
    """Read a tar and see that it ends soon and writes nothing."""
    before = sorted(tmp_path.rglob("*"))
    started = time.perf_counter()
    pairs = read_pairs(path)
    assert time.perf_counter() - started < 5
    assert sorted(tmp_path.rglob("*")) == before
    return pairs


def insert(tmp_path, block):
    """Write a good tar with a raw block between its two samples."""
    content = tar(tmp_path / "0.tar", GOOD).read_bytes()
    (tmp_path / "0.tar").write_bytes(content[:2048] + block + content[2048:])
    return tmp_path / "0.tar"


@pytest.mark.parametrize("kind", LINKS)
def test_links_and_devices_are_never_opened(tmp_path, kind):
    form, target = LINKS[kind]
    files = [*list(GOOD.items())[:2], (info("3.jpg", form, linkname=target), b""), *list(GOOD.items())[2:]]
    pairs = watched(tmp_path, tar(tmp_path / "0.tar", files))
    assert [content_of(pairs.items["image"], i) for i in range(2)] == [b"picture 1", b"picture 2"]
    assert [(problem.id, problem.reason) for problem in pairs.problems] == [("0.tar/3.jpg", "wrong format")]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_lead_elsewhere_are_problems(tmp_path, name):
    pairs = watched(tmp_path, tar(tmp_path / "0.tar", {**GOOD, name: b"x"}))
    assert pairs.table["key"].to_pylist() == ["1", "2"]
    assert [(problem.id, problem.reason) for problem in pairs.problems] == [(f"0.tar/{name}", "wrong format")]


@pytest.mark.parametrize("suffix", PICKLES)
def test_pickles_are_never_read(tmp_path, suffix):
    pairs = watched(tmp_path, tar(tmp_path / "0.tar", {**GOOD, f"1.{suffix}": b"cos\nsystem\n(S'true'\ntR."}))
    assert pairs.table.column_names == ["key", "image", "text"]
    assert [(problem.id, problem.reason) for problem in pairs.problems] == [(f"0.tar/1.{suffix}", "wrong format")]
    assert "which can run code: never read" in pairs.problems[0].message


@pytest.mark.parametrize("what", BLOCKS)
def test_damage_keeps_what_is_before_it_and_names_its_place(tmp_path, what):
    pairs = watched(tmp_path, insert(tmp_path, BLOCKS[what]))
    image = pairs.items["image"]
    kept = [content_of(image, i) for i in range(len(image))]
    assert kept[0] == b"picture 1"
    assert kept == [b"picture 1"] or what == "pax without a member"
    if what != "pax without a member":
        assert [(problem.id, problem.reason) for problem in pairs.problems] == [("0.tar", "truncated")]
        assert " byte " in pairs.problems[0].message


@pytest.mark.parametrize("what", CHAINS)
def test_strange_members_are_passed_over(tmp_path, what):
    pairs = watched(tmp_path, insert(tmp_path, CHAINS[what]))
    image = pairs.items["image"]
    assert {content_of(image, i) for i in range(len(image))} >= {b"picture 1", b"picture 2"}
    assert [problem.reason for problem in pairs.problems] == ["wrong format"] * (not what.startswith("a thousand"))


@pytest.mark.parametrize("blocks", range(1, 20))
def test_a_tar_cut_at_any_block_keeps_the_members_before(tmp_path, blocks):
    files = {**GOOD, "3.jpg": b"p" * 700, "3.txt": b"x"}
    content = tar(tmp_path / "0.tar", files).read_bytes()
    for cut in (512 * blocks, 512 * blocks - 1, 512 * blocks - 200):
        (tmp_path / "0.tar").write_bytes(content[:cut])
        whole = [name for name, end in zip(files, (521, 1540, 2569, 3587, 5308, 6145), strict=True) if end <= cut]
        if not whole:
            assert "0.tar" in refusal(tmp_path / "0.tar")
            continue
        reading = read_source(tmp_path / "0.tar")
        cells = [cell for row in reading.table.to_pylist() for name, cell in row.items() if name != "key" and cell]
        assert len(cells) == len(whole)
        marked = cut >= 7168  # the first block of the mark of the end
        assert [problem.reason for problem in reading.problems] == ["truncated"] * (not marked)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_whatever_bytes_change_the_tar_is_read_or_refused(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("tar")
    content = bytearray(
        tar(folder / "0.tar", {**GOOD, "1.json": b'{"a": 1}', "n" * 200 + ".jpg": b"x"}).read_bytes()[:9216]
    )
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / "0.tar").write_bytes(content)
    try:
        reading = read_source(folder / "0.tar")
    except DataError:
        return
    assert len(reading.table) >= 1


def test_two_tars_in_one_are_noticed(tmp_path):
    content = tar(tmp_path / "0.tar", GOOD).read_bytes()
    (tmp_path / "0.tar").write_bytes(content + content)
    problem = read_source(tmp_path / "0.tar").problems[0]
    assert (problem.reason, problem.message[:40]) == ("unreadable", "is not at its end after the mark of the ")


@pytest.mark.parametrize(("form", "command"), [("gz", "gunzip"), ("bz2", "bunzip2"), ("xz", "unxz")])
def test_compressed_tars_name_the_next_step(tmp_path, form, command):
    for name in (f"0.tar.{form}", "0.tar"):
        with tarfile.open(tmp_path / name, f"w:{form}") as archive:
            archive.addfile(info("1.jpg", size=1), io.BytesIO(b"x"))
        assert refusal(tmp_path / name).endswith(f"so its members cannot be read in place: {command} {name}")
    assert "is not named .tar; rename it" in refusal(tar(tmp_path / "1.tgz", GOOD))


def test_one_bad_tar_costs_no_other(tmp_path):
    for i in range(3):
        tar(tmp_path / f"{i}.tar", GOOD)
    (tmp_path / "1.tar").write_bytes(b"<html>404</html>" * 100)
    (tmp_path / "3.tar").write_bytes(b"")
    (tmp_path / "4.tar").mkdir()
    (tmp_path / "5.tar").symlink_to("nowhere")
    pairs = read_pairs(tmp_path)
    assert len(pairs) == 4
    found = [(problem.id, problem.reason) for problem in pairs.problems]
    assert found == [("1.tar", "wrong format"), ("3.tar", "no content"), ("5.tar", "missing")]


def test_tars_without_samples_say_why(tmp_path):
    (tmp_path / "0.tar").write_bytes(b"<html>404</html>" * 100)
    assert "no samples in 1 tars" in refusal(tmp_path / "0.tar")
    assert "0.tar: is no tar (invalid header)" in refusal(tmp_path / "0.tar")
    assert "no samples in 1 tars" in refusal(tar(tmp_path / "1.tar", {"README": b"x"}))


BAD_TEXTS = {
    "1.txt": b"\xff", "1.json": b"{", "1.caption": b"\xc3", "2.json": b"[1]", "3.json": b"[" * 100_000,
    "4.json": b'{"a": ' + b"9" * 5000 + b"}",
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_TEXTS)
def test_texts_that_do_not_parse_are_problems(tmp_path, name):
    files = {"1.jpg": b"i", "2.jpg": b"i", "2.txt": b"kite", name: BAD_TEXTS[name]}
    reading = read_source(tar(tmp_path / "0.tar", files))
    assert [(problem.id, problem.reason) for problem in reading.problems] == [(f"0.tar/{name}", "wrong format")]
    assert reading.table["text"].to_pylist()[:2] == [None, "kite"]


def test_a_text_of_10_mb_is_too_large_and_a_second_json_a_duplicate(tmp_path):
    files = [("1.txt", b"x" * 10_000_001), ("2.txt", b"x"), ("2.json", b"{}"), ("2.json", b'{"a": 1}')]
    problems = read_source(tar(tmp_path / "0.tar", files)).problems
    assert [(problem.id, problem.reason) for problem in problems] == [
        ("0.tar/1.txt", "too large"),
        ("0.tar/2.json", "duplicate"),
    ]


def test_there_is_a_limit_to_columns_and_to_members(tmp_path, monkeypatch):
    fields = json.dumps({f"f{i}": i for i in range(1000)}).encode()
    reading = read_source(tar(tmp_path / "0.tar", {**GOOD, "1.json": fields}))
    assert reading.table.num_columns == 257
    assert [(problem.id, problem.reason) for problem in reading.problems] == [("0.tar", "too large")]
    monkeypatch.setattr("fusemix.data.tars.MAX_MEMBERS", 3)
    reading = read_source(tar(tmp_path / "0.tar", GOOD))
    assert reading.table["text"].to_pylist() == ["kite", None]
    assert [(problem.id, problem.reason) for problem in reading.problems] == [("0.tar", "too large")]


def many(path, count):
    block = bytearray(info("00000000.jpg").tobuf(tarfile.USTAR_FORMAT))
    with path.open("wb") as file:
        for i in range(count):
            block[:8] = b"%08d" % i
            file.write(signed(block))
        file.write(bytes(1024))
    return path


def test_time_grows_with_the_members_and_not_faster(tmp_path):
    seconds = []
    for count in (2_000, 20_000):
        started = time.perf_counter()
        assert len(read_tars([many(tmp_path / "0.tar", count)], tmp_path).table) == count
        seconds.append(time.perf_counter() - started)
    assert seconds[1] < 30 * max(seconds[0], 0.02)


def test_numbers_of_sizes_beyond_octal_are_read(tmp_path):
    block = header("1.jpg", size=b"\x80" + bytes(3) + struct.pack(">Q", 3)) + b"abc" + bytes(509)
    (tmp_path / "0.tar").write_bytes(block + tar(tmp_path / "1.tar", {"1.txt": b"kite"}).read_bytes())
    assert content_of(read_pairs(tmp_path / "0.tar").items["image"], 0) == b"abc"
