"""The server in a process of its own: addresses, kinds of query, who is let in; and the small form of torture."""

import asyncio
import json
import os
import shutil
import signal
import socket
import time
from threading import Thread
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("fastapi")

import fusemix as fm
import served
import torture_server
import torture_server_load
import warm
from conftest import encode_image, encode_text
from fusemix.errors import DataError, StoreError
from fusemix.search.query import Term
from fusemix.server.app import plain
from fusemix.server.batching import Answer, Ask, answer_all
from fusemix.server.run import make_server, serve
from fusemix.server.served import Served

# Clients that are thrown out close when they find the time; the end of their loop may come before.
left_open = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    served.make_index(folder, 40)
    (folder / "sentinel.txt").write_text(torture_server.SENTINEL)
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with served.Server(folder / "index") as server:
        yield server
        assert "Traceback" not in server.told()


@pytest.fixture(scope="module")
def locked(folder):
    """A server with a token, in a thread: one more process would spend its time on imports."""
    shown = Served(folder / "index", {})
    shown.open()
    server = make_server(shown, "127.0.0.1", 0, torture_server.TOKEN)
    thread = Thread(target=server.run)
    thread.start()
    while not server.started:
        pass
    host, port = server.servers[0].sockets[0].getsockname()
    yield SimpleNamespace(host=host, port=port, now=shown.now)
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def opened(folder):
    index = fm.open_index(folder / "index")
    index.space.use_encoder("sound", f"{folder / 'hear.py'}:encode")
    return index


def send(server, raw):
    return asyncio.run(served.send(server, raw))


def get(server, path):
    return send(server, served.request("GET", path))


def search(server, *terms, files=None, **more):
    query = {"query": list(terms), "k": 5, **more}
    reply = send(server, served.form_request(query, files) if files else served.search_request(query))
    assert reply.status == 200, reply.body
    return reply.json()


def refused(server, status, *terms, files=None, **more):
    query = {"query": list(terms), **more}
    reply = send(server, served.form_request(query, files) if files else served.search_request(query))
    assert reply.status == status, reply.body
    assert reply.headers["content-type"] == "application/json"
    return reply.json()["error"]


def same(answer, hits):
    """What the server answers is what the index finds."""
    assert [(hit["modality"], hit["id"]) for hit in answer["hits"]] == [(hit.modality, hit.id) for hit in hits]
    np.testing.assert_allclose([hit["score"] for hit in answer["hits"]], [hit.score for hit in hits], atol=1e-5)
    return True


def test_it_says_what_it_serves(server, opened):
    assert get(server, "/healthz").json()["status"] == "ok"
    assert get(server, "/readyz").json() == {"status": "ready", "generation": 1}
    about = get(server, "/v1/index").json()
    assert about["items"] == len(opened) == 100 and about["dim"] == 1152 and about["generation"] == 1
    assert {each["name"]: each["items"] for each in about["modalities"]} == {"image": 40, "sound": 60}
    assert {each["name"]: each["ready"] for each in about["queries"]} == {"image": True, "text": True, "sound": True}
    columns = {each["name"]: each for each in about["columns"]}
    assert columns["split"]["values"] == ["test", "train", "val"] and columns["text"]["type"] == "text"
    assert {".png", ".wav", ".mp4"} <= set(about["accept"]) and ".svg" not in about["accept"]


def test_words_files_items_and_vectors_find_what_the_index_finds(server, opened, folder):
    assert same(search(server, {"text": "low hum"}), opened.search("low hum", k=5))
    picture = next((folder / "images").glob("*.png"))
    by_file = search(server, {"file": "a.png"}, files={"a.png": picture.read_bytes()})
    assert same(by_file, opened.search(picture, k=5)) and by_file["hits"][0]["score"] == pytest.approx(1, abs=1e-4)
    sound = folder / "tones" / "07.wav"
    assert same(search(server, {"file": "b.wav"}, files={"b.wav": sound.read_bytes()}), opened.search(sound, k=5))
    by_item = search(server, {"item": "tones/07.wav"})
    assert by_item["hits"][0]["id"] == "tones/07.wav"
    vector = np.array(by_item["embedding"], np.float32)
    assert same(search(server, {"vector": by_item["embedding"]}), opened.search(vector, k=5))


def test_terms_are_added_and_subtracted(server, opened):
    answer = search(server, {"text": "low hum"}, {"text": "high whistle", "weight": -0.5}, {"item": "tones/30.wav"})
    vector = (
        opened.embed("low hum")
        - 0.5 * opened.embed("high whistle")
        + opened.embeddings[opened.row_of["sound", "tones/30.wav"]].numpy()
    )
    assert same(answer, opened.search(vector, k=5))
    np.testing.assert_allclose(answer["embedding"], vector / np.linalg.norm(vector), atol=1e-5)


def test_conditions_and_modalities_narrow_a_search(server, opened):
    answer = search(server, {"text": "low hum"}, among="image", where=["split = train"], k=100)
    assert {hit["modality"] for hit in answer["hits"]} == {"image"}
    assert {hit["columns"]["split"] for hit in answer["hits"]} == {"train"} and answer["exact"]
    assert search(server, {"text": "a"}, where=["split = nowhere"])["hits"] == []
    items = get(server, "/v1/items?k=7&among=sound").json()["hits"]
    assert len(items) == 7 and {hit["modality"] for hit in items} == {"sound"} and items[0]["score"] is None
    assert get(server, "/v1/items?k=7&where=split%20%3D%20nowhere").json()["hits"] == []
    assert get(server, "/v1/items?k=1000").json()["hits"][99]["id"] == opened.items["id"][99].as_py()


def test_previews_are_small_pictures_and_sounds_by_id(server):
    hits = [
        *search(server, {"text": "x"}, among="image")["hits"],
        *search(server, {"text": "x"}, among="sound")["hits"],
    ]
    for hit in hits:
        reply = get(server, hit["preview"])
        kind = {"image": "image/webp", "sound": "audio/mpeg"}[hit["modality"]]
        assert (
            reply.status == 200
            and reply.headers["content-type"] == kind
            and "private" in reply.headers["cache-control"]
        )
    assert get(server, "/v1/preview?modality=image&id=nothing").status == 404
    assert get(server, "/v1/preview?modality=sound&id=images%2Fu0041.png").status == 404


def test_no_answer_says_where_a_file_lies(server, folder):
    for reply in (
        get(server, "/v1/index"),
        get(server, "/v1/items"),
        send(server, served.search_request({"query": [{"text": "a"}]})),
    ):
        assert str(folder).encode() not in reply.body


def test_errors_say_what_was_wrong_and_what_to_do(server):
    assert (
        "one of text, item, vector and file, not text, item"
        in refused(server, 422, {"text": "a", "item": "b"})["message"]
    )
    assert "query" in refused(server, 422)["message"]
    assert "query.0.txt: no such field; found: text, item, " in refused(server, 422, {"txt": "a"})["message"]
    assert (
        "wher: no such field; found: query, k, where, among; did you mean 'where'?"
        in refused(server, 422, {"text": "a"}, wher=[])["message"]
    )
    assert "no item 'tones/7.wav'; did you mean 'tones/" in refused(server, 422, {"item": "tones/7.wav"})["message"]
    assert "wanted 1152 numbers" in refused(server, 422, {"vector": [1.0]})["message"]
    assert "did you mean 'split'?" in refused(server, 422, {"text": "a"}, where=["splt = test"])["message"]
    assert "the index holds no 'text'" in refused(server, 422, {"text": "a"}, among="text")["message"]
    assert "no file 'a.png'" in refused(server, 422, {"file": "a.png"})["message"]
    error = refused(server, 415, {"file": "a.png"}, files={"a.png": b"nothing"})
    assert "wrong format" in error["message"] and "PNG" in error["hint"]
    error = refused(server, 415, {"file": "a.svg"}, files={"a.svg": b"<svg/>"})
    assert "a.svg" in error["message"] and ".png" in error["hint"]
    error = refused(server, 422, {"text": "a", "modality": "video"})
    assert "no modality 'video'; found: image, text, sound" in error["message"]
    assert "takes no text" in refused(server, 422, {"text": "a", "modality": "image"})["message"]
    assert get(server, "/v1/nothing").json()["error"]["code"] == "not_found"
    assert send(server, served.request("DELETE", "/v1/search")).status == 405
    for raw in (served.request("GET", "/v1/items?where=" + "a" * 200_000), b"nonsense\r\n\r\n"):
        reply = send(server, raw)
        assert (reply.status, reply.json()["error"]["code"]) == (400, "bad_request")


def test_a_modality_whose_encoder_is_code_of_ones_own_says_how_to_name_it(locked):
    bearer = [("authorization", f"Bearer {torture_server.TOKEN}")]
    bare = [("authorization", torture_server.TOKEN)]
    assert send(locked, served.request("GET", "/v1/index", bare)).status == 401
    about = send(locked, served.request("GET", "/v1/index", bearer)).json()
    asked = {each["name"]: each for each in about["queries"]}
    assert not asked["sound"]["ready"] and "hear.py" in asked["sound"]["why"] and asked["image"]["ready"]
    assert ".wav" not in about["accept"] and ".png" in about["accept"]
    body = json.dumps({"query": [{"text": "a", "modality": "sound"}]}).encode()
    reply = send(locked, served.request("POST", "/v1/search", [*bearer, ("content-type", "application/json")], body))
    assert reply.status == 422 and "'sound' takes no text" in reply.json()["error"]["message"]


def test_every_answer_has_the_headers_that_keep_strangers_out(server):
    for path in ("/", "/page.js", "/v1/index", "/nope"):
        headers = get(server, path).headers
        assert (
            "default-src 'none'" in headers["content-security-policy"]
            and "unsafe" not in headers["content-security-policy"]
        )
        assert (
            headers["x-content-type-options"] == "nosniff" and headers["cross-origin-resource-policy"] == "same-origin"
        )
        assert "server" not in headers and not any(name.startswith("access-control") for name in headers)


def test_the_page_names_nothing_of_elsewhere(server):
    for path in ("/", "/page.js", "/page.css"):
        text = get(server, path).body.decode()
        assert "://" not in text.replace("http://www.w3.org/2000/svg", ""), path
        assert "innerHTML" not in text and "insertAdjacentHTML" not in text


def test_doors_paths_limits_and_bombs_as_in_torture(server, locked, capsys):
    torture_server.doors(server, locked)
    torture_server.paths(server, 60)
    torture_server.limits(server)
    torture_server.unpack(server, 10)
    _all_hold(capsys, 6)


def test_schemathesis_finds_nothing(server, capsys):
    torture_server.schema(server, 100)
    _all_hold(capsys, 2)


@left_open
def test_slow_clients_are_closed_and_honest_ones_answered(server, capsys):
    asyncio.run(torture_server_load.slow_clients(server, 20, 2))
    lines = [
        json.loads(line.removeprefix("RESULT "))
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("RESULT")
    ]
    found = {line["name"]: line["figure"] for line in lines}  # how fast is no matter of a test
    assert found["honest requests answered beside 20 slow connections, %"] == 100
    assert found["longest life of a slow connection, s"] < 20


@left_open
def test_a_swap_fails_no_search(folder, server, capsys):
    asyncio.run(torture_server_load.swaps(server, folder / "index", 2))
    _all_hold(capsys, 2)


def test_an_index_that_was_made_anew_is_served_though_it_counts_from_one_again(model, latents, tmp_path, monkeypatch):
    monkeypatch.setattr("fusemix.server.served.LOOK_SECONDS", 0.01)
    index = model.index(latents["image"])
    index.save(tmp_path / "i")
    shown = Served(tmp_path / "i", {})
    shown.open()
    assert len(shown.now.index) == len(index) and "never runs code by itself" in shown.now.why["text"]
    shutil.rmtree(tmp_path / "i")
    index.take(np.arange(10)).save(tmp_path / "i")
    while len(shown.now.index) != 10:
        time.sleep(0.01)
    assert shown.now.index.generation == 1
    shown.close()


@left_open
def test_more_than_it_can_do_is_told_at_once(server):
    async def flood():
        return await asyncio.gather(*(served.send(server, torture_server_load.ask(i)) for i in range(400)))

    replies = asyncio.run(flood())
    for reply in replies:
        assert torture_server_load.is_right(reply) or (reply.status == 503 and reply.headers["retry-after"] == "1")
        assert reply.status == 200 or reply.json()["error"]["code"] == "busy"
    assert sum(reply.status == 200 for reply in replies) >= 64
    assert torture_server_load.is_right(send(server, torture_server_load.ask(0)))


@left_open
def test_sigterm_answers_what_was_asked_and_exits_with_0(folder):
    with served.Server(folder / "index") as server:

        async def ask_and_end():
            asked = [asyncio.create_task(served.send(server, torture_server_load.ask(i))) for i in range(40)]
            await asyncio.sleep(0.05)
            server.process.send_signal(signal.SIGTERM)
            return await asyncio.gather(*asked)

        replies = asyncio.run(ask_and_end())
        assert all(torture_server_load.is_right(reply) for reply in replies)
        assert server.process.wait(20) == 0 and server.told() == ""


def test_a_damaged_index_is_an_error_and_no_server(folder, tmp_path):
    shutil.copytree(folder / "index", tmp_path / "index")
    path = next((tmp_path / "index").glob("generation-*")) / "embeddings.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    done = warm.run(["serve", "index", "--port", "0"], tmp_path, dict(os.environ))
    assert done.returncode == 2 and "has not the content that was written" in done.stderr and done.stdout == ""


def test_other_addresses_need_a_token_that_nobody_guesses(folder, tmp_path):
    with pytest.raises(DataError, match="--host 0.0.0.0 lets others in: give a --token"):
        serve(folder / "index", host="0.0.0.0")
    with pytest.raises(DataError, match="at least 16"):
        serve(folder / "index", token="short")
    with pytest.raises(StoreError, match="holds no index; make one with `fusemix index`"):
        serve(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(DataError, match=f"cannot listen on 127.0.0.1, port {port}: .*; --port 0 takes a free one"):
            serve(folder / "index", port=port)


def test_one_bad_query_of_a_batch_fails_alone(model, latents):
    model.use_encoder("text", encode_text).use_encoder("image", encode_image)
    index = model.index(latents["image"])
    good = [Ask([Term(f"red above blue {i}")], 3) for i in range(4)]
    bad = [Ask([Term(torch.zeros(32))], 3), Ask([Term("a")], 3, where=["nope = 1"])]
    answers = answer_all(index, [*good[:2], *bad, *good[2:]])
    assert [isinstance(answer, Answer) for answer in answers] == [True, True, False, False, True, True]
    for ask, answer in zip(good, [*answers[:2], *answers[4:]], strict=True):
        assert [hit.id for hit in answer.hits] == [hit.id for hit in index.search(ask.terms[0].value, k=3)]
        assert [index.items["id"][row].as_py() for row in answer.rows] == [hit.id for hit in answer.hits]


def test_cells_become_what_json_has():
    assert [plain(value) for value in (float("nan"), float("inf"), None, 3, 0.5, True, "a")] == [
        None,
        None,
        None,
        3,
        0.5,
        True,
        "a",
    ]
    assert plain(np.datetime64("2026-01-01")) == "2026-01-01"


def _all_hold(capsys, count):
    out = capsys.readouterr().out
    lines = [json.loads(line.removeprefix("RESULT ")) for line in out.splitlines() if line.startswith("RESULT")]
    assert len(lines) == count and all(line["holds"] for line in lines), out
