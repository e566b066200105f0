"""The search page in a real browser: every way to ask, every error, strangers' strings, keys, shares and the token."""

import os
from base64 import b64encode
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pytest
import torture_page
from conftest import encode_image, encode_text
from served import HEAR, Server, write_tones
from torture_page import Watch, ask, browser, hostile_index, made_of_strings, payloads, send_file, settle, show

import fusemix as fm
from fusemix.search.index import Index
from fusemix.search.previews import with_previews
from fusemix.search.space import Space

if torture_page.MISSING:
    pytest.skip(torture_page.MISSING, allow_module_level=True)

from playwright.sync_api import expect

TOKEN = "a-token-of-24-characters"
OWN = Path(__file__).with_name("conftest.py")
STRINGS = payloads()[::9]


@pytest.fixture(scope="module")
def folder(world, latents, tmp_path_factory) -> Path:
    """`index` holds 60 pictures, 20 texts and 12 sounds in one space, `hostile` strings that would be code."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "hear.py").write_text(HEAR)
    tones = fm.read_pairs(write_tones(folder, 12), sound="file", text="caption")
    heard = fm.extract(tones, sound=f"{folder / 'hear.py'}:encode", text=encode_text, out=folder / "heard")
    fits = [fm.FuseMix(lock="text", epochs=8, batch_size=16).fit(each) for each in (latents.split()[0], heard)]
    index = Index.of(Space(fits), latents["image"], latents["text"], heard["sound"])
    index = index.take(np.r_[0:60, 120:140, 360:372])
    prices = index.columns.append_column("price", pa.array(np.arange(len(index)) / 2))
    with_previews(replace(index, columns=prices)).save(folder / "index")
    hostile_index(index.space, STRINGS).save(folder / "hostile")
    return folder


@pytest.fixture(scope="module")
def chromium():
    with browser() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def server(folder, chromium):  # chromium first: a server that is started takes cores from this process
    with Server(
        folder / "index", "--encoder", f"image={OWN}:encode_image", "--encoder", f"text={OWN}:encode_text"
    ) as it:
        yield it


@pytest.fixture(scope="module")
def guarded(folder, server):
    """A server of the hostile index, with a token and without the encoders, which are code of one's own."""
    with Server(folder / "hostile", "--token", TOKEN, hears=False) as it:
        yield it


@pytest.fixture
def watched(chromium):
    """Open pages, each in a context of its own, and hold all of them to silence."""
    opened = []

    def new(server, **settings):
        context = chromium.new_context(**settings)
        opened.append((context, Watch(context, server.address)))
        page = context.new_page()
        page.set_default_timeout(10_000)
        return page, opened[-1][1]

    yield new
    for context, watch in opened:
        context.close()
        assert watch.lines == [] and watch.elsewhere == [] and watch.dialogs == []


@pytest.fixture(scope="module")
def tab(chromium, server):
    """One page for all tests that need no other: a new one costs more than they do."""
    context = chromium.new_context(permissions=["clipboard-read", "clipboard-write", "microphone"])
    watch = Watch(context, server.address)
    yield context.new_page(), watch
    context.close()


@pytest.fixture
def page(tab, server):
    """The page as it starts."""
    page, watch = tab
    page.set_default_timeout(10_000)
    page.goto("about:blank")
    page.goto(server.address)
    expect(page.locator(".card")).to_have_count(24)
    yield page
    assert watch.lines == [] and watch.elsewhere == [] and watch.dialogs == []


def hits(page):
    settle(page)
    return page.locator(".card").evaluate_all("(cards) => cards.map(({ dataset }) => [dataset.modality, dataset.id])")


def scores(page):
    return [
        float(text) for text in page.locator(".score").evaluate_all("(all) => all.map((one) => one.lastChild.data)")
    ]


def terms(page):
    return page.locator("#terms .chip").evaluate_all(
        "(chips) => chips.map((chip) => chip.querySelector('.sign').innerText + chip.querySelector('.label').innerText)"
    )


def told(page):
    """The error that is shown."""
    expect(page.locator("#error")).to_be_visible()
    settle(page)
    return page.locator("#error").inner_text()


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
    shown = "(all) => all.every((one) => one.complete && one.naturalWidth > 0)"
    assert page.locator(".card[data-kind=image] img").evaluate_all(shown)
    assert page.locator(".card[data-kind=sound] audio, .card[data-kind=audio] audio").count() == 3
    assert (
        page.locator(".card[data-kind=text] .words")
        .first.text_content()
        .startswith(("red", "blue", "green", "yellow", "picture"))
    )


def test_words_are_searched_when_one_pauses_and_at_once_on_enter(page):
    page.locator("#words").press_sequentially("picture 5 of blue under yellow")
    expect(page.locator(".card .words").first).to_have_text("picture 5 of blue under yellow")
    assert scores(page)[0] == 1 and scores(page) == sorted(scores(page), reverse=True)
    assert page.url.endswith("/#text=picture+5+of+blue+under+yellow")
    ask(page, "yellow above blue number 5")
    assert terms(page) == ["+yellow above blue number 5"]
    assert page.locator(".card .words").first.text_content() == "yellow above blue number 5"
    page.locator("#terms .remove").click()
    expect(page.locator("#heading")).to_have_text("To begin with")
    assert page.locator("#words").input_value() == "" and len(hits(page)) == 24


def test_a_picture_finds_itself_whether_chosen_or_dropped(page, world):
    choose(page, world / "007.png")
    assert terms(page) == ["+007.png"] and hits(page)[0] == ["image", "007.png"] and scores(page)[0] == 1
    expect(page.locator("#terms img")).to_be_visible()
    drop = """([name, content]) => {
      const dataTransfer = new DataTransfer();
      const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
      dataTransfer.items.add(new File([bytes], name, { type: "image/png" }));
      const send = (type) => document.body.dispatchEvent(new DragEvent(type, { dataTransfer, bubbles: true, cancelable: true }));
      send("dragover");
      const seen = !document.querySelector("#drop").hidden;
      send("drop");
      return seen && document.querySelector("#drop").hidden;
    }"""
    assert page.evaluate(drop, ["008.png", b64encode((world / "008.png").read_bytes()).decode()])
    assert terms(page) == ["+008.png"] and hits(page)[0] == ["image", "008.png"]


def test_a_sound_finds_itself_and_a_video_is_heard(page, folder):
    choose(page, folder / "tones" / "05.wav")
    assert hits(page)[0] == ["sound", "tones/05.wav"] and scores(page)[0] == 1
    expect(page.locator("#terms audio")).to_be_visible()
    choose(page, film(folder / "film.mp4"))
    assert terms(page) == ["+film.mp4"] and hits(page)[0][0] == "sound"


def test_what_is_recorded_is_searched_by(page):
    page.get_by_role("button", name="Record").click()
    expect(page.locator("#record-label")).to_have_text("Stop 1 s")
    page.locator("#record").click()
    expect(page.locator("#terms .label")).to_have_text("recording.wav")
    assert len(hits(page)) == 24 and "vector@recording.wav=" in page.url
    expect(page.locator("#record-label")).to_have_text("Record")


def test_a_hit_is_searched_by_added_and_subtracted(page):
    first, second, third = (page.locator(".card").nth(i) for i in range(3))
    names = [each[1] for each in hits(page)[:3]]
    first.locator(".open").click()
    assert terms(page) == [f"+{names[0]}"] and hits(page)[0][1] == names[0] and scores(page)[0] == 1
    second.locator(".add").click()
    added = hits(page)[1][1]
    assert len(terms(page)) == 2
    page.locator(f".card[data-id='{added}'] .subtract").click()
    assert terms(page)[1].startswith("−") and len(hits(page)) == 24
    page.locator("#terms .sign").last.click()  # which turns it round
    settle(page)
    assert [term[0] for term in terms(page)] == ["+", "+"]
    third.locator(".like").click()
    assert len(hits(page)) == 24 and len(terms(page)) == 1


def test_filters_narrow_the_search(page):
    page.locator("#filters > summary").click()
    page.get_by_label("maker").select_option("m3")
    expect(page.locator("#filter-count")).to_have_text("(1)")
    few = hits(page)
    page.get_by_label("title contains").fill("RED")
    expect(page.locator("#filter-chips")).to_contain_text("title contains RED")
    assert 0 < len(hits(page)) < len(few)
    facts = page.locator(".card dl").all_text_contents()
    assert all("m3" in fact and "red" in fact for fact in facts)
    page.get_by_label("price at most").fill("9.5")
    page.get_by_label("among").select_option("image")
    expect(page.locator("#filter-chips li")).to_have_count(4)
    assert {modality for modality, _ in hits(page)} == {"image"}
    ask(page, "blue")
    assert page.url.endswith("#text=blue&where=title+~+RED&where=maker+%3D+m3&where=price+%3C%3D+9.5&among=image")
    page.locator("#clear-filters").click()
    assert len(hits(page)) == 24 and page.url.endswith("#text=blue")


def test_more_is_shown_below_what_was_there(page):
    ask(page, "blue above red")
    before = hits(page)
    page.locator(".card").first.evaluate("(card) => { card.dataset.mine = 1; }")
    page.locator("#more").click()
    expect(page.locator(".card")).to_have_count(48)
    assert hits(page)[:24] == before and page.url.endswith("&k=48")
    expect(page.locator(".card").first).to_have_attribute("data-mine", "1")  # it was not drawn anew
    expect(page.locator(".card").nth(24).locator(".open")).to_be_focused()
    page.locator("#more").click()
    expect(page.locator(".card")).to_have_count(92)
    expect(page.locator("#more")).to_be_hidden()


def test_an_address_gives_the_same_hits_to_somebody_else(page, watched, server, world):
    other, _ = watched(server)
    choose(page, world / "011.png")
    page.locator(".card .subtract").nth(5).click()
    after_file, by_file = hits(page), page.url
    assert "vector@011.png+" in by_file
    ask(page, "green above red")
    page.locator(".card .add").nth(3).click()
    expect(page.locator("#terms .chip")).to_have_count(2)
    after_words = hits(page)
    for address, wanted in ((by_file, after_file), (page.url, after_words)):
        other.goto("about:blank")
        other.goto(address)
        expect(other.locator(".card")).to_have_count(24)
        assert hits(other) == wanted


def test_back_and_forward_go_through_the_searches_files_too(page, world):
    seen = []
    for change in (
        lambda: ask(page, "red"),
        lambda: choose(page, world / "012.png"),
        lambda: page.locator(".open").nth(4).click(),
    ):
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
    focus = "document.activeElement.id || document.activeElement.className"
    page.evaluate("document.activeElement.blur()")
    for wanted in ("skip", "open-help", "words"):
        page.keyboard.press("Tab")
        assert page.evaluate(focus) == wanted
    page.keyboard.type("green above blue")
    page.keyboard.press("Enter")
    found = hits(page)
    page.keyboard.press("ArrowDown")
    cards = page.locator(".card .open")
    expect(cards.first).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(cards.nth(1)).to_be_focused()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowRight")
    expect(cards.nth(2)).to_be_focused()
    page.keyboard.press("Enter")
    settle(page)
    assert page.locator(".chip").get_attribute("data-kind") == "item" and hits(page)[0] == found[2]
    page.keyboard.press("Escape")
    expect(page.locator("#heading")).to_have_text("To begin with")
    page.keyboard.press("/")
    expect(page.locator("#words")).to_be_focused()
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#help")).to_be_hidden()


def test_errors_say_what_to_do(page, tmp_path):
    page.locator("#filters > summary").click()
    page.get_by_label("title contains").fill("nothing has this")
    expect(page.locator("#empty")).to_contain_text("The filters leave no item.")
    page.get_by_role("button", name="Clear filters").first.click()
    expect(page.locator(".card")).to_have_count(24)
    (tmp_path / "notes.pdf").write_text("no picture")
    choose(page, tmp_path / "notes.pdf")
    assert told(page).startswith("notes.pdf is of no kind that this index takes.\nIt takes .")
    (tmp_path / "huge.png").touch()
    os.truncate(tmp_path / "huge.png", 26 << 20)
    choose(page, tmp_path / "huge.png")
    assert told(page) == "huge.png has 26.0 MB, the limit is 25.0 MB.\nShrink it."
    assert len(hits(page)) == 24, "what was there stays"
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\nno more than this")
    choose(page, tmp_path / "damaged.png")
    assert "damaged.png: " in told(page)
    assert page.locator(".card").count() == 0
    ask(page, "red")
    expect(page.locator("#error")).to_be_hidden()


def test_the_token_is_asked_for_and_kept_out_of_the_address(watched, guarded):
    page, _ = watched(guarded)
    page.goto(guarded.address)
    dialog = page.get_by_role("dialog", name="This index wants a token")
    expect(dialog).to_be_visible()
    dialog.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Enter the token").click()
    dialog.get_by_label("Token").fill("another one")
    dialog.get_by_role("button", name="Open").click()
    expect(dialog).to_contain_text("That token was not accepted.")
    dialog.get_by_label("Token").fill(TOKEN)
    page.keyboard.press("Enter")
    expect(page.locator(".card")).to_have_count(24)
    expect(page.locator(".card img").first).to_have_attribute(
        "src",
        f"blob:{guarded.address}",
    ) if False else None
    page.reload()  # this tab keeps it
    expect(page.locator(".card")).to_have_count(24)
    other, _ = watched(guarded)
    other.goto(f"{guarded.address}/#among=image&token={TOKEN}&k=5")
    expect(other.locator(".card")).to_have_count(5)
    assert other.url == f"{guarded.address}/#among=image&k=5"
    assert other.locator(".card img").first.evaluate("(node) => node.decode().then(() => node.src)").startswith("blob:")


def test_strangers_strings_are_shown_and_do_nothing(watched, guarded):
    page, watch = watched(guarded)
    assert sorted(show(page, f"{guarded.address}/#k=1000&token={TOKEN}")) == sorted(2 * STRINGS)
    assert page.locator(".card[data-kind=text] .words").all_text_contents() == STRINGS[1:] + STRINGS[:1]
    assert made_of_strings(page, watch) == (0, 0)
    page.locator("#filter-form select").last.select_option(STRINGS[3])
    settle(page)
    assert made_of_strings(page, watch) == (0, 0)


def test_strangers_strings_as_queries_and_names_of_files_do_nothing(page, tab):
    for text in STRINGS[::3]:
        ask(page, text)
        assert made_of_strings(page, tab[1]) == (0, 0)
        send_file(page, f"{text}.png")
        assert made_of_strings(page, tab[1]) == (0, 0)
    torture_page.follow(page, STRINGS[1])
    assert made_of_strings(page, tab[1]) == (0, 0)


@pytest.mark.parametrize("settings", [{}, {"color_scheme": "dark"}, {"viewport": {"width": 360, "height": 740}}])
def test_it_fits_and_is_legible_light_dark_and_on_a_phone(settings, watched, server):
    page, _ = watched(server, **settings)
    page.goto(server.address)
    expect(page.locator(".card")).to_have_count(24)
    ask(page, "a long query of many words, and averylongonethatcannotbebrokenanywhereatallandgoesonandon")
    page.locator(".card .subtract").nth(3).click()
    page.locator("#filters > summary").click()
    page.get_by_label("title contains").fill("no such title, and this is long too, longer than a phone is wide")
    expect(page.locator("#empty")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    page.locator("#empty button").click()
    page.locator("#open-help").click()
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    assert page.locator("#help").evaluate("(node) => node.scrollWidth - node.clientWidth") <= 0


def test_without_encoders_and_without_a_server_the_page_says_so(watched, guarded):
    """The last of its server."""
    page, _ = watched(guarded)
    page.goto(f"{guarded.address}/#token={TOKEN}")
    expect(page.locator(".card")).to_have_count(24)
    ask(page, "red")
    assert "A query by text does not work here" in told(page) and "--encoder" in told(page)
    page.locator("#words").press("Escape")
    expect(page.locator(".card")).to_have_count(24)
    page.locator(".open").first.click()
    assert len(hits(page)) == 24, "its own items need no encoder"
    guarded.process.terminate()
    guarded.process.wait(20)
    page.locator(".open").nth(1).click()
    assert told(page) == "The server does not answer.\nIs `fusemix serve` still running?\nTry again"
