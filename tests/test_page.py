"""The search page in a real browser: every way to ask, every error, strangers' strings, keys, shares and the token."""

import os
import re
from base64 import b64encode
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pytest

import fusemix as fm
import torture_page
from conftest import encode_text
from fusemix.search.index import Index
from fusemix.search.previews import with_previews
from fusemix.search.space import Space
from served import HEAR, Server, write_tones
from torture_page import (
    HOSTILE,
    Watch,
    ask,
    browser,
    follow,
    hostile_index,
    made_of_strings,
    payloads,
    send_file,
    settle,
)

if torture_page.MISSING:
    pytest.skip(torture_page.MISSING, allow_module_level=True)

from playwright.sync_api import expect

SMALL = {"width": 800, "height": 500}  # the less is drawn, the less it costs
TOKEN = "a-token-of-24-characters"
OWN = Path(__file__).with_name("conftest.py")
STRINGS = payloads()[::9]
MINUS = "\N{MINUS SIGN}"
fresh = count()  # numbers that make an address another one


@pytest.fixture(scope="module")
def folder(world, latents, tmp_path_factory) -> Path:
    """`index` holds 60 pictures, 20 texts and 12 sounds in one space, `HOSTILE` strings that would be code."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "hear.py").write_text(HEAR)
    tones = fm.read_pairs(write_tones(folder, 12), sound="file", text="caption")
    heard = fm.extract(tones, sound=f"{folder / 'hear.py'}:encode", text=encode_text, out=folder / "heard")
    fits = [fm.FuseMix(lock="text", epochs=8, batch_size=16).fit(each) for each in (latents.split()[0], heard)]
    index = Index.of(Space(fits), latents["image"], latents["text"], heard["sound"])
    index = index.take(np.r_[0:60, 120:140, 360:372])
    prices = index.columns.append_column("price", pa.array(np.arange(len(index)) / 2))
    with_previews(replace(index, columns=prices)).save(folder / "index")
    hostile_index(index.space, STRINGS).save(folder / HOSTILE)
    return folder


@pytest.fixture(scope="module")
def chromium():
    with browser() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def server(folder, chromium):  # chromium first: a server that is started takes cores from this process
    own = [word for name in ("image", "text") for word in ("--encoder", f"{name}={OWN}:encode_{name}")]
    with Server(folder / "index", *own) as server:
        yield server


@pytest.fixture(scope="module")
def guarded(folder, server):
    """A server of the hostile index, with a token and without the encoders, which are code of one's own."""
    with Server(folder / HOSTILE, "--token", TOKEN, hears=False) as server:
        yield server


@contextmanager
def opened(chromium, server):
    """A page of a context that shares nothing with others, and what it does that it should not."""
    permissions = ["clipboard-read", "clipboard-write", "microphone"]
    with chromium.new_context(permissions=permissions, viewport=SMALL, reduced_motion="reduce") as context:
        page, watch = context.new_page(), Watch(context, server.address)
        page.set_default_timeout(20_000)
        yield page, watch
        assert watch.quiet


@pytest.fixture(scope="module")
def tab(chromium, server):
    """One page for all tests that need no other: a new one costs more than they do."""
    with opened(chromium, server) as tab:
        yield tab


@pytest.fixture(scope="module")
def guarded_tab(chromium, guarded):
    with opened(chromium, guarded) as tab:
        yield tab


@pytest.fixture
def page(tab):
    """The page as it starts, but not loaded anew, which costs more than a test."""
    page, watch = tab
    if page.url == "about:blank":
        load(page, watch.origin)
    page.goto(f"{watch.origin}/#{next(fresh)}")
    expect(page.locator("#heading")).to_have_text("To begin with")
    assert len(hits(page)) == 24
    page.locator("#filters").evaluate("(node) => { node.open = false; }")
    yield page
    assert watch.quiet


@pytest.fixture
def guarded_page(guarded_tab):
    """The page of the guarded server, before it is opened."""
    page, watch = guarded_tab
    yield page
    assert watch.quiet


def load(page, origin, asked="", items=24):
    page.goto(f"{origin}/?{next(fresh)}{asked}")
    expect(page.locator(".card")).to_have_count(items)


def hits(page):
    settle(page)
    return page.locator(".card").evaluate_all("(cards) => cards.map(({ dataset }) => [dataset.modality, dataset.id])")


def scores(page):
    return page.locator(".score").evaluate_all("(all) => all.map((one) => Number(one.lastChild.data))")


def terms(page):
    return page.locator("#terms .chip").evaluate_all(
        "(chips) => chips.map((chip) => chip.querySelector('.sign').innerText + chip.querySelector('.label').innerText)"
    )


def told(page):
    """The error that is shown."""
    expect(page.locator("#error")).to_be_visible()
    settle(page)
    return [line.inner_text() for line in page.locator("#error > *").all()]


def choose(page, *paths):
    page.locator("#file").set_input_files(paths)
    settle(page)


def film(path):
    """A black video of a second, whose sound track is a tone of 440 Hz."""
    with av.open(path, "w") as container:
        video, audio = container.add_stream("mpeg4", rate=24), container.add_stream("aac", rate=16_000)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for _ in range(24):
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        container.mux(video.encode())
        tone = np.sin(2 * np.pi * 440 * np.arange(16_384) / 16_000).astype(np.float32)[None] / 2
        for start in range(0, 16_384, 1024):
            frame = av.AudioFrame.from_ndarray(tone[:, start : start + 1024].copy(), format="fltp", layout="mono")
            frame.rate, frame.pts = 16_000, start
            container.mux(audio.encode(frame))
        container.mux(audio.encode())
    return path


def test_the_start_says_what_the_index_is_and_shows_items_of_all_of_it(page):
    expect(page.locator("#name")).to_have_text("index")
    expect(page.locator("#facts")).to_have_text("92 items · image, text, sound · 64 dimensions")
    expect(page.locator("#heading")).to_have_text("To begin with")
    assert {modality for modality, _ in hits(page)} == {"image", "text", "sound"}
    width = page.locator(".card img").first.evaluate("(node) => node.decode().then(() => node.naturalWidth)")
    assert width == 16, "a picture that is in sight is there"
    assert page.locator(".card[data-kind=audio] audio").count() == 3


def test_words_are_searched_when_one_pauses_and_at_once_on_enter(page):
    page.locator("#words").press_sequentially("picture 5 of blue under yellow")
    expect(page.locator(".card .words").first).to_have_text("picture 5 of blue under yellow")
    found = scores(page)
    assert found[0] == 1 and found == sorted(found, reverse=True)
    assert page.url.endswith("#text=picture+5+of+blue+under+yellow")
    ask(page, "yellow above blue number 5")
    assert terms(page) == ["+yellow above blue number 5"]
    assert page.locator(".card .words").first.text_content() == "yellow above blue number 5"
    page.locator("#terms .remove").click()
    expect(page.locator("#heading")).to_have_text("To begin with")
    assert page.locator("#words").input_value() == "" and len(hits(page)) == 24


DROP = """([name, content]) => {
  const dataTransfer = new DataTransfer();
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  dataTransfer.items.add(new File([bytes], name, { type: "image/png" }));
  const options = { dataTransfer, bubbles: true, cancelable: true };
  document.body.dispatchEvent(new DragEvent("dragover", options));
  const seen = !document.querySelector("#drop").hidden;
  document.body.dispatchEvent(new DragEvent("drop", options));
  return seen && document.querySelector("#drop").hidden;
}"""


def test_a_picture_finds_itself_whether_chosen_or_dropped(page, world):
    choose(page, world / "007.png")
    assert terms(page) == ["+007.png"] and hits(page)[0] == ["image", "007.png"] and scores(page)[0] == 1
    expect(page.locator("#terms img")).to_be_visible()
    assert page.evaluate(DROP, ["008.png", b64encode((world / "008.png").read_bytes()).decode()])
    assert hits(page)[0] == ["image", "008.png"] and terms(page) == ["+008.png"]


def test_a_sound_finds_itself_and_a_video_is_heard(page, folder):
    choose(page, folder / "tones" / "05.wav")
    assert hits(page)[0] == ["sound", "tones/05.wav"] and scores(page)[0] == 1
    expect(page.locator("#terms audio")).to_be_visible()
    choose(page, film(folder / "film.mp4"))
    assert hits(page)[0][0] == "sound" and terms(page) == ["+film.mp4"]


def test_what_is_recorded_is_searched_by(page):
    page.get_by_role("button", name="Record").click()
    expect(page.locator("#record-label")).to_have_text("Stop 1 s")
    page.locator("#record").click()
    expect(page.locator("#terms .label")).to_have_text("recording.wav")
    assert len(hits(page)) == 24 and "vector@recording.wav=" in page.url
    expect(page.locator("#record-label")).to_have_text("Record")


def test_a_hit_is_searched_by_added_and_subtracted(page):
    chosen = hits(page)[5]
    page.locator(".open").nth(5).click()
    assert hits(page)[0] == chosen and scores(page)[0] == 1 and terms(page) == [f"+{chosen[1]}"]
    page.locator(".add").nth(1).click()
    assert len(hits(page)) == 24 and [term[0] for term in terms(page)] == ["+", "+"]
    both = hits(page)
    page.locator(f".card[data-id='{both[0][1]}'] .subtract").click()
    assert hits(page) != both and sorted(term[0] for term in terms(page)) == ["+", MINUS]
    page.locator("#terms .sign").last.click()  # which turns it round
    assert hits(page) == both and [term[0] for term in terms(page)] == ["+", "+"]
    page.locator(".like").nth(3).click()
    assert hits(page)[0] == both[3] and len(terms(page)) == 1


def test_filters_narrow_the_search(page):
    page.locator("#filters > summary").click()
    page.get_by_label("maker").select_option("m3")
    expect(page.locator("#filter-count")).to_have_text("(1)")
    few = hits(page)
    page.get_by_label("title contains").fill("RED")
    expect(page.locator("#filter-count")).to_have_text("(2)")
    assert 0 < len(hits(page)) < len(few)
    facts = page.locator(".card dl").all_text_contents()
    assert all("m3" in fact and "red" in fact for fact in facts)
    page.get_by_label("price at most").fill("25")
    page.get_by_label("among").select_option("image")
    expect(page.locator("#filter-chips li")).to_have_count(4)
    assert {modality for modality, _ in hits(page)} == {"image"}
    ask(page, "blue")
    assert page.url.endswith("#text=blue&where=title+~+RED&where=maker+%3D+m3&where=price+%3C%3D+25&among=image")
    page.locator("#clear-filters").click()
    assert len(hits(page)) == 24 and page.url.endswith("#text=blue")
    page.evaluate("""location.hash = "#text=blue&where=maker+%3D+'m3'" """)  # on the page quotes are of the value
    expect(page.locator("#filter-count")).to_have_text("(1)")
    expect(page.locator(".card")).to_have_count(0)


def test_more_is_shown_below_what_was_there(page):
    ask(page, "blue above red")
    before = hits(page)
    page.locator(".card").first.evaluate("(card) => { card.dataset.mine = 1; }")
    page.locator("#more").click()
    expect(page.locator(".card")).to_have_count(48)
    assert hits(page)[:24] == before and page.url.endswith("&k=48")
    expect(page.locator(".card").first).to_have_attribute("data-mine", "1")  # it was not drawn anew
    expect(page.locator(".open").nth(24)).to_be_focused()
    page.locator("#more").click()
    expect(page.locator(".card")).to_have_count(92)
    expect(page.locator("#more")).to_be_hidden()


def test_an_address_gives_the_same_hits_to_somebody_else(page, chromium, server, world):
    page.locator(".open").nth(3).click()
    page.locator(".subtract").nth(2).click()
    page.locator("#filters > summary").click()
    page.get_by_label("among").select_option("image")
    expect(page.locator("#filter-chips li")).to_have_count(1)
    shared = [(hits(page), scores(page), page.url)]
    choose(page, world / "011.png")
    page.locator(".subtract").nth(5).click()
    shared.append((hits(page), scores(page), page.url))
    assert "#vector@011.png+" in page.url
    with opened(chromium, server) as (other, _):
        for found, how_near, address in shared:
            other.goto(address)
            expect(other.locator("#heading")).to_have_text("Nearest items")
            assert hits(other) == found
            np.testing.assert_allclose(scores(other), how_near, atol=0.0011)


def test_back_and_forward_go_through_the_searches_also_of_files(page, world):
    seen = []
    changes = (
        lambda: ask(page, "red"),
        lambda: choose(page, world / "012.png"),
        lambda: page.locator(".open").nth(4).click(),
    )
    for change in changes:
        change()
        seen.append((hits(page), terms(page)))
    for go, wanted in ((page.go_back, seen[1]), (page.go_back, seen[0]), (page.go_forward, seen[1])):
        go()
        expect(page.locator("#terms .label")).to_have_text(wanted[1][0][1:])
        assert (hits(page), terms(page)) == wanted
    assert page.locator("#terms .chip").get_attribute("data-kind") == "file"


def test_the_address_is_copied(page):
    ask(page, "yellow")
    page.locator("#copy").click()
    expect(page.locator("#copy")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == page.url


def test_everything_goes_by_keyboard(page):
    press, cards = page.keyboard.press, page.locator(".open")
    page.reload()
    expect(page.locator("#words")).to_be_focused()
    for key, wanted in (("Shift+Tab", "#open-help"), ("Shift+Tab", "#skip"), ("Tab", "#open-help"), ("Tab", "#words")):
        press(key)
        expect(page.locator(wanted)).to_be_focused()
    page.keyboard.type("green above blue")
    press("Enter")
    found = hits(page)
    for key, wanted in (("ArrowDown", 0), ("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1)):
        press(key)
        expect(cards.nth(wanted)).to_be_focused()
    press("ArrowDown")
    press("ArrowUp")
    expect(cards.nth(1)).to_be_focused()
    press("Enter")
    assert hits(page)[0] == found[1] and page.locator(".chip").get_attribute("data-kind") == "item"
    press("ArrowUp")
    expect(page.locator("#words")).to_be_focused()
    press("Escape")
    expect(page.locator("#heading")).to_have_text("To begin with")
    press("?")
    expect(page.locator("#help")).to_be_visible()
    press("Escape")
    expect(page.locator("#help")).to_be_hidden()
    page.locator("#results").focus()
    press("/")
    expect(page.locator("#words")).to_be_focused()


def test_errors_say_what_to_do(page, tmp_path):
    page.locator("#filters > summary").click()
    page.get_by_label("title contains").fill("nothing has this")
    expect(page.locator("#empty")).to_contain_text("The filters leave no item.")
    page.locator("#empty").get_by_role("button", name="Clear filters").click()
    expect(page.locator(".card")).to_have_count(24)
    (tmp_path / "notes.pdf").write_text("no picture")
    choose(page, tmp_path / "notes.pdf")
    message, advice = told(page)
    assert message == "notes.pdf is of no kind that this index takes." and ".png" in advice and ".wav" in advice
    (tmp_path / "huge.png").touch()
    os.truncate(tmp_path / "huge.png", 26 << 20)
    choose(page, tmp_path / "huge.png")
    assert told(page) == ["huge.png has 26.0 MB, the limit is 25.0 MB.", "Shrink it."]
    assert len(hits(page)) == 24, "what was there stays"
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\nno more than this")
    choose(page, tmp_path / "damaged.png")
    assert "damaged.png: " in told(page)[0]
    assert page.locator(".card").count() == 0
    page.locator("#terms .remove").click()
    expect(page.locator(".card")).to_have_count(24)
    expect(page.locator("#error")).to_be_hidden()


TOO_WIDE = "() => ['html', '#help', '#token-dialog'].filter((name) => { const node = document.querySelector(name); "
TOO_WIDE += "return node.scrollWidth > node.clientWidth; })"


def test_nothing_is_wider_than_the_page_light_dark_and_on_a_phone(page):
    looks = [
        (1280, "light", "rgb(255, 255, 255)"),
        (1280, "dark", "rgb(16, 21, 31)"),
        (360, "light", "rgb(255, 255, 255)"),
    ]
    long = "many words and " + "onethatislongerthantheboxandcannotbebrokenanywhere" * 3

    def look():
        for width, scheme, paper in looks:
            page.set_viewport_size({"width": width, "height": 740})
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate("getComputedStyle(document.body).backgroundColor") == paper
            assert page.evaluate(TOO_WIDE) == []

    page.locator("#filters > summary").click()
    ask(page, long)
    try:
        look()
        page.get_by_label("title contains").fill(long)
        expect(page.locator("#empty")).to_be_visible()
        page.locator("#open-help").click()
        look()
        page.keyboard.press("Escape")
    finally:
        page.set_viewport_size(SMALL)
        page.emulate_media(color_scheme="light")


def test_a_busy_server_is_asked_again(page):
    answers = iter([503, 503])
    busy = {
        "status": 503,
        "headers": {"retry-after": "0.1"},
        "json": {"error": {"code": "busy", "message": "x", "hint": None}},
    }
    page.route("**/v1/search", lambda route: route.fulfill(**busy) if next(answers, 0) else route.continue_())
    ask(page, "blue")
    assert len(hits(page)) == 24 and next(answers, None) is None
    page.unroute("**/v1/search")


def test_strings_of_strangers_do_nothing_as_queries_and_names_of_files(page, tab):
    for text in STRINGS[::6]:
        ask(page, text)
        assert made_of_strings(page, tab[1]) == (0, 0)
        send_file(page, f"{text}.png")
        assert made_of_strings(page, tab[1]) == (0, 0)
    follow(page, STRINGS[1])
    assert made_of_strings(page, tab[1]) == (0, 0)


def test_the_token_is_asked_for_and_kept_by_this_tab_alone(guarded_page, guarded):
    page = guarded_page
    page.goto(guarded.address)
    dialog = page.get_by_role("dialog", name="This index wants a token")
    dialog.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Enter the token").click()
    dialog.get_by_label("Token").fill("another one")
    dialog.get_by_role("button", name="Open").click()
    expect(dialog).to_contain_text("That token was not accepted.")
    dialog.get_by_label("Token").fill(TOKEN)
    page.keyboard.press("Enter")
    expect(page.locator(".card")).to_have_count(24)
    load(page, guarded.address)
    page.evaluate("sessionStorage.clear()")
    load(page, guarded.address, f"#among=image&token={TOKEN}&k=5", 5)
    assert page.url.endswith("#among=image&k=5")
    # Nor does a picture's address hold it.
    expect(page.locator(".card img").first).to_have_attribute("src", re.compile(f"^blob:{guarded.address}/"))


def test_strings_of_strangers_do_nothing_as_texts_columns_and_ids(guarded_page, guarded_tab, guarded):
    page, watch = guarded_page, guarded_tab[1]
    load(page, guarded.address, f"#k=1000&token={TOKEN}", 2 * len(STRINGS))
    assert sorted(page.locator(".id").all_text_contents()) == sorted(2 * STRINGS)
    assert page.locator(".card[data-kind=text] .words").all_text_contents() == STRINGS[1:] + STRINGS[:1]
    expect(page.locator("#name")).to_have_text(HOSTILE)
    page.locator("#filters > summary").click()
    page.locator("#filter-form select").last.select_option(STRINGS[3])
    expect(page.locator("#filter-count")).to_have_text("(1)")
    page.locator(".open").first.click()
    page.locator(".subtract").last.click()
    settle(page)
    assert made_of_strings(page, watch) == (0, 0)


def test_it_says_when_encoders_are_missing_and_when_the_server_is_gone(guarded_page, guarded):
    """The last of its server."""
    page = guarded_page
    load(page, guarded.address, f"#token={TOKEN}")
    page.locator("#words").fill("red")
    page.keyboard.press("Enter")
    message, advice = told(page)
    assert "A query by text does not work here: " in message and advice == "Search by its own items."
    page.keyboard.press("Escape")
    expect(page.locator(".card")).to_have_count(24)
    page.locator(".open").first.click()
    assert len(hits(page)) == 24, "its own items need no encoder"
    guarded.process.terminate()
    guarded.process.wait(20)
    page.locator(".open").nth(1).click()
    assert told(page) == ["The server does not answer.", "Is `fusemix serve` still running?", "Try again"]
