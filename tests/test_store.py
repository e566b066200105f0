"""A store gives back what was committed, or says what is wrong and what to do; it never writes anything twice."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from fusemix import durable
from fusemix.data.pairs import Items
from fusemix.data.store import Encoded, Facts, Failure, LatentStore
from fusemix.errors import MismatchError, StoreError

ENCODER = {"loader": "function", "name": "enc:f", "code": "abc", "pooling": "mean"}


def plan(tmp_path, count=10, shard_items=4, dtype="float16"):
    items = Items("text", "text", [f"id{i}" for i in range(count)], [f"text {i}" for i in range(count)], tmp_path)
    facts = Facts("text", "text", ENCODER, "enc.py:f", count, "hash", shard_items, 2, dtype)
    return facts, items


def latents_of(items, dim=3):
    return np.array([[i + j / 8 for j in range(dim)] for i in items], np.float32).reshape(-1, dim)


def encoded(items, latents, failures=()):
    places = np.array(list(items), dtype=np.int64)
    return Encoded(places, latents, (places % 4 // 2).astype(np.int32), list(failures))


def fill(store, failed=(), shards=None):
    for shard in store.missing() if shards is None else shards:
        good = [i for i in store.items_of(shard) if i not in failed]
        bad = [Failure(i, "unreadable", f"item {i} ä") for i in store.items_of(shard) if i in failed]
        store.commit(shard, encoded(good, latents_of(good), bad))
    return store


def made(tmp_path, failed=(), name="store", **options):
    return fill(LatentStore.create(tmp_path / name, *plan(tmp_path, **options)), failed)


def shard_file(store, shard=0):
    return store.folder / f"shard-{shard:05d}.safetensors"


def refusal(call, error=StoreError):
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("shard_items", [1, 3, 10, 2048])
def test_what_is_committed_comes_back_equal(tmp_path, dtype, shard_items):
    store = made(tmp_path, shard_items=shard_items, dtype=dtype)
    assert store.shards == -(-10 // shard_items)
    again = LatentStore.open(store.folder)
    for opened in (store, again):
        assert opened.latents.dtype == getattr(torch, dtype)
        np.testing.assert_array_equal(opened.latents.numpy(), latents_of(range(10)).astype(dtype))
        assert opened.encoded.tolist() == list(range(10))
        assert opened.failures == []
        assert opened.missing() == []
    assert again.facts == store.facts
    assert again.items.to_pydict() == {"id": [f"id{i}" for i in range(10)], "value": [f"text {i}" for i in range(10)]}


def test_float32_keeps_every_bit(tmp_path):
    values = np.random.default_rng(0).normal(size=(10, 5)).astype(np.float32) * 1e30
    store = LatentStore.create(tmp_path / "s", *plan(tmp_path, shard_items=10, dtype="float32"))
    store.commit(0, encoded(range(10), values))
    np.testing.assert_array_equal(LatentStore.open(store.folder).latents.numpy(), values)


def test_a_shard_tells_the_batch_of_each_latent_and_whether_a_batch_was_halved(tmp_path):
    store = made(tmp_path, failed={1})
    assert store.read(0).batches.tolist() == [0, 1, 1] and not store.read(0).halved
    places = np.arange(8, 10)
    store.commit(2, Encoded(places, latents_of(places), np.zeros(2, np.int32), [], halved=True))
    assert LatentStore.open(store.folder).read(2).halved
    assert LatentStore.open(store.folder).missing() == []


def test_canaries_are_asked_for_once_and_kept(tmp_path):
    asked = []

    def answer():
        asked.append(1)
        return np.arange(32, dtype=np.float32).reshape(16, 2)

    for _ in range(2):
        store = LatentStore.create(tmp_path / "s", *plan(tmp_path), answer)
        np.testing.assert_array_equal(store.canaries.numpy(), np.arange(32).reshape(16, 2))
    assert asked == [1]
    assert made(tmp_path, name="none").canaries is None
    (store.folder / "canaries.safetensors").write_bytes(b"damaged")
    assert "canaries.safetensors is damaged" in refusal(lambda: LatentStore.open(store.folder).canaries)


def test_failures_come_back_and_their_items_have_no_latent(tmp_path):
    store = LatentStore.open(made(tmp_path, failed={0, 3, 9}).folder)
    assert store.failures == [Failure(i, "unreadable", f"item {i} ä") for i in (0, 3, 9)]
    assert store.encoded.tolist() == [1, 2, 4, 5, 6, 7, 8]
    np.testing.assert_array_equal(store.latents.numpy(), latents_of([1, 2, 4, 5, 6, 7, 8]))
    assert len(store.encoded) + len(store.failures) == store.facts.count


def test_a_shard_in_which_everything_failed_is_sound(tmp_path):
    store = LatentStore.create(tmp_path / "s", *plan(tmp_path))
    fill(store, shards=[0, 2])
    store.commit(1, encoded([], np.empty((0, 0), np.float32), [Failure(i, "missing", "no file") for i in range(4, 8)]))
    again = LatentStore.open(store.folder)
    assert again.missing() == []
    assert again.latents.shape == (6, 3)


def test_a_store_in_which_everything_failed_points_to_the_reasons(tmp_path):
    store = LatentStore.create(tmp_path / "s", *plan(tmp_path, shard_items=10))
    store.commit(0, encoded([], np.empty((0, 0), np.float32), [Failure(i, "missing", "no file") for i in range(10)]))
    assert "none of 10 items could be encoded; see failed.parquet" in refusal(lambda: store.latents)


def test_items_are_counted_in_every_commit(tmp_path):
    store = LatentStore.create(tmp_path / "s", *plan(tmp_path))
    with pytest.raises(AssertionError, match="in = ok"):
        store.commit(0, encoded([0, 1, 2], latents_of([0, 1, 2])))


def test_equal_content_gives_equal_bytes(tmp_path):
    first, *others = (made(tmp_path, failed={2, 5}, name=f"s{i}") for i in range(6))
    for path in first.folder.iterdir():
        assert {path.read_bytes()} == {(other.folder / path.name).read_bytes() for other in others}, path.name


def test_values_that_do_not_fit_float16_are_refused_with_the_way_out(tmp_path):
    store = LatentStore.create(tmp_path / "s", *plan(tmp_path, shard_items=10))
    latents = latents_of(range(10))
    latents[4, 1] = -70000
    message = refusal(lambda: store.commit(0, encoded(range(10), latents)))
    assert message.startswith("text: latents up to 7e+04 do not fit float16; extract into another folder with dtype ")
    assert store.missing() == [0]
    assert not shard_file(store).exists()


def test_an_unfinished_store_says_so_and_how_to_finish(tmp_path):
    store = fill(LatentStore.create(tmp_path / "s", *plan(tmp_path)), shards=[0, 2])
    again = LatentStore.open(store.folder)
    assert again.missing() == [1]
    message = refusal(lambda: again.latents)
    assert "shard 2 of 3 is missing, the extraction did not finish; run the same `fusemix extract` again" in message


def test_a_shard_torn_at_any_place_is_found_and_says_what_to_do(tmp_path):
    store = made(tmp_path, failed={1}, count=3)
    path = shard_file(store)
    content = path.read_bytes()
    for size in range(0, len(content), 5):
        path.write_bytes(content[:size])
        assert LatentStore.open(store.folder).missing() == [0], size
    for size in (0, 7, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        message = refusal(lambda: LatentStore.open(store.folder).latents)
        assert f"{path} is damaged" in message
        assert "run the same `fusemix extract` again, it does this shard anew" in message
    path.write_bytes(content + b"\0")
    assert LatentStore.open(store.folder).missing() == [0]


def test_a_flipped_bit_at_any_place_is_found(tmp_path):
    store = made(tmp_path, failed={1}, count=3)
    path = shard_file(store)
    content = path.read_bytes()
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << (place % 8)
        path.write_bytes(flipped)
        assert LatentStore.open(store.folder).missing() == [0], place
    path.write_bytes(content)
    assert LatentStore.open(store.folder).missing() == []


def test_only_the_damaged_shard_is_missing_and_committing_it_again_heals_the_store(tmp_path):
    store = made(tmp_path, failed={5})
    whole = {path.name: path.read_bytes() for path in store.folder.iterdir()}
    shard_file(store, 1).write_bytes(whole["shard-00001.safetensors"][:-9])
    again = LatentStore.open(store.folder)
    assert again.missing() == [1]
    fill(again, failed={5})
    assert {path.name: path.read_bytes() for path in store.folder.iterdir()} == whole


def test_a_shard_of_another_store_is_refused(tmp_path):
    store, other = made(tmp_path), made(tmp_path, name="other", dtype="float32")
    shard_file(store).write_bytes(shard_file(other).read_bytes())
    again = LatentStore.open(store.folder)
    assert again.missing() == [0]
    message = refusal(lambda: again.latents)
    assert "shard-00000.safetensors belongs to another store" in message
    assert "run the same `fusemix extract` again" in message


def test_a_shard_in_the_place_of_another_is_refused(tmp_path):
    store = made(tmp_path, shard_items=5)
    shard_file(store, 1).write_bytes(shard_file(store, 0).read_bytes())
    again = LatentStore.open(store.folder)
    assert again.missing() == [1]
    assert "shard-00001.safetensors belongs to another" in refusal(lambda: again.latents)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"dtype": "float32"}, "dtype (was 'float16', is 'float32')"),
        ({"shard_items": 5}, "shard_items (was 4, is 5)"),
        ({"items": "other"}, "items (was 'hash', is 'other')"),
        ({"count": 11}, "count (was 10, is 11)"),
        ({"encoder": {**ENCODER, "pooling": "cls"}}, "encoder.pooling (was 'mean', is 'cls')"),
        ({"encoder": {**ENCODER, "layer": 3}}, "encoder.layer (was None, is 3)"),
        ({"encoder": {"name": "enc:f"}}, "encoder.code (was 'abc', is None)"),
    ],
)
def test_other_facts_are_a_mismatch_that_names_the_field(tmp_path, change, named):
    store = made(tmp_path)
    facts, items = plan(tmp_path)
    message = refusal(lambda: LatentStore.create(store.folder, replace(facts, **change), items), MismatchError)
    assert f"made with another {named};" in message
    assert "give another output folder, or delete this one to start again" in message


def test_nothing_that_was_committed_is_written_again(tmp_path):
    store = made(tmp_path, failed={1})
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino, path.read_bytes()) for path in store.folder.iterdir()}
    again = LatentStore.create(store.folder, *plan(tmp_path))
    fill(again)
    assert before == {
        path: (path.stat().st_mtime_ns, path.stat().st_ino, path.read_bytes()) for path in store.folder.iterdir()
    }


@pytest.mark.parametrize("started", [True, False])
def test_leftovers_of_a_killed_run_are_removed(tmp_path, started):
    folder = tmp_path / "s"
    if started:
        LatentStore.create(folder, *plan(tmp_path))
    folder.mkdir(exist_ok=True)
    (folder / f".facts.json.{durable.HOST}.{os.getpid()}.tmp").write_bytes(b"torn")
    LatentStore.create(folder, *plan(tmp_path))
    assert sorted(path.name for path in folder.iterdir()) == ["facts.json", "items.parquet"]


def test_a_folder_without_a_store_says_how_to_make_one(tmp_path):
    message = refusal(lambda: LatentStore.open(tmp_path))
    assert message == f"{tmp_path} holds no latents (no facts.json); make them with `fusemix extract`"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "fusemix-latents-2", "more": 1}', "\xff"])
def test_damaged_facts_say_what_to_do(tmp_path, content):
    store = made(tmp_path)
    (store.folder / "facts.json").write_bytes(content.encode("latin-1"))
    message = refusal(lambda: LatentStore.open(store.folder))
    assert "facts.json is damaged" in message
    assert "extract into a new folder" in message


def test_another_format_is_named(tmp_path):
    store = made(tmp_path)
    values = json.loads((store.folder / "facts.json").read_bytes())
    (store.folder / "facts.json").write_text(json.dumps({**values, "format": "fusemix-latents-0"}))
    assert "not in the format fusemix-latents-2" in refusal(lambda: LatentStore.open(store.folder))


def test_a_damaged_list_of_items_says_what_to_do(tmp_path):
    store = made(tmp_path)
    path = store.folder / "items.parquet"
    path.write_bytes(path.read_bytes()[:50])
    assert "items.parquet is damaged" in refusal(lambda: LatentStore.open(store.folder).items)
    path.unlink()
    assert f"delete {store.folder} and extract again" in refusal(lambda: LatentStore.open(store.folder).items)


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h.pop("latents"),
        lambda h: h.pop("__metadata__"),
        lambda h: h["latents"].update(dtype="F64"),
        lambda h: h["latents"].update(shape=[3, 4]),
        lambda h: h["latents"].update(shape=[-3, -3]),
        lambda h: h["latents"].update(shape=[9]),
        lambda h: h["latents"].update(shape=[1, 9]),
        lambda h: h["items"].update(shape=[1, 3]),
        lambda h: h["batches"].update(data_offsets=[0, 12]),
        lambda h: h["latents"].update(data_offsets="ab"),
        lambda h: h["latents"].update(data_offsets=[36, 54.5]),
        lambda h: h["latents"].update(shape=[3.0, 3.0]),
        lambda h: h.update(latents=7),
        lambda h: h.update(__metadata__={"record": "[]"}),
        lambda h: h.update(__metadata__={"record": "[" * 100_000}),
        lambda h: h.update(__metadata__={"record": json.loads(json.dumps(h["__metadata__"]["record"])).replace(
            '"failed": []', '"failed": [[1, "missing", ""]]')}),
    ],
)  # fmt: skip
def test_a_header_that_lies_is_damage_and_never_a_crash(tmp_path, change):
    store = made(tmp_path, count=3)
    path = shard_file(store)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    lie = json.dumps(header).encode()
    lie += b" " * (-len(lie) % 8)
    path.write_bytes(len(lie).to_bytes(8, "little") + lie + content[8 + length :])
    again = LatentStore.open(store.folder)
    message = refusal(lambda: again.rows)
    assert f"{path} is damaged" in message and "it does this shard anew" in message
    assert again.missing() == [0]
