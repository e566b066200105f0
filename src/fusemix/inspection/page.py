"""The page of an inspection: a summary, then each finding with its pictures, players and texts side by side."""

from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

from fusemix.data.decoding import Decoders
from fusemix.data.items import Items
from fusemix.data.media import ItemError
from fusemix.data.pairs import Pairs
from fusemix.errors import FusemixError
from fusemix.inspection.findings import MEANING, Account, Concern, Finding
from fusemix.page import write_page

CARDS = 12  # concerns of a finding that are shown; all of them are in inspect.parquet
LINES = 50  # the same of concerns that are a line of text
PICTURE = 176  # pixels of the longer edge
CLIP = 5  # seconds of a sound
MOST_BYTES = 4_000_000  # of pictures and sounds together; what comes later is named only
TEXT = 300  # characters of a text

STYLE = """
.badge { display: inline-block; font-size: .75rem; font-weight: 650; border-radius: 1rem; padding: .05rem .6rem; }
.badge.problem { background: #fbe0dd; color: #8f1d13; } .badge.warning { background: #fdefc8; color: #6f4b00; }
.badge.note { background: var(--card); color: var(--soft); }
@media (prefers-color-scheme: dark) { .badge.problem { background: #56201b; color: #ffc9c2; }
  .badge.warning { background: #4a3a0d; color: #ffe19a; } }
table.summary td { text-align: left; vertical-align: top; } table.summary a { color: inherit; }
table.summary td:nth-child(2) { white-space: nowrap; }
table.summary td:nth-child(3) { overflow-wrap: anywhere; }
h2 .badge { vertical-align: .15rem; margin-left: .4rem; }
.concerns { display: flex; flex-wrap: wrap; gap: .8rem; margin-top: .8rem; }
.concern { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .6rem;
  flex: 0 1 auto; max-width: 25rem; }
.sides { display: flex; gap: .6rem; } .side { flex: 0 1 11.5rem; min-width: 7rem; font-size: .85rem; line-height: 1.3; }
.side img { max-width: 100%; max-height: 11rem; border-radius: .3rem; display: block; background: #fff; }
.side audio { width: 11rem; max-width: 100%; height: 2.2rem; }
.side p { margin: .3rem 0 0; overflow-wrap: anywhere; } .concern .meta { font-size: .78rem; margin-top: .4rem; }
ul.lines { list-style: none; padding: 0; margin: .6rem 0; font-size: .88rem; overflow-wrap: anywhere; }
ul.lines li { border-bottom: 1px solid var(--line); padding: .15rem 0; }
"""


def write_inspection(
    path: Path, source: str, pairs: Pairs, accounts: Mapping[str, Account], findings: Sequence[Finding]
) -> None:
    """Write the page; a picture or a sound that cannot be shown is named instead.

    Args:
        path: of the HTML file.
        source: what was inspected, as it was named.
        pairs: its rows and items.
        accounts: of each modality.
        findings: in the order of the page.
    """
    with Decoders(1) as decoders:
        shown = _Shown(pairs, decoders)
        sections = "".join(_section(shown, i, finding) for i, finding in enumerate(findings))
    left = f" {shown.left_out:,} pictures and sounds more would not fit this page." if shown.left_out else ""
    rest = f'<h2>All of it</h2><p class="note">Every row and item is in inspect.parquet beside this page.{left}</p>'
    body = f"<h2>Summary</h2>{_summary(findings)}{_accounts(pairs, accounts)}{sections}{rest}"
    lead = f"{len(pairs):,} rows, {len(findings)} findings, worst first"
    write_page(path, f"Inspection of {source}", lead, body, STYLE)


def _summary(findings: Sequence[Finding]) -> str:
    lines = "".join(
        f'<tr><td><span class="badge {f.severity}">{f.severity}</span></td><td>{_link(i, f)}</td>'
        f"<td>{escape(f.sentence)}</td></tr>"
        for i, f in enumerate(findings)
    )
    return f'<table class="summary">{lines}</table>'


def _accounts(pairs: Pairs, accounts: Mapping[str, Account]) -> str:
    head = "".join(f"<th>{word}</th>" for word in ("modality", "kind", "items", "ok", "failed", "not looked at"))
    lines = "".join(
        f"<tr><td>{escape(name)}</td><td>{pairs.items[name].kind}</td>"
        f"<td>{a.items:,}</td><td>{a.ok:,}</td><td>{a.failed:,}</td><td>{a.skipped:,}</td></tr>"
        for name, a in accounts.items()
    )
    return f"<h2>Items</h2><table><tr>{head}</tr>{lines}</table>"


def _link(number: int, finding: Finding) -> str:
    return f'<a href="#f{number}">{_title(finding)}</a>' if finding.concerns else _title(finding)


def _title(finding: Finding) -> str:
    return escape(f"{finding.modality}: {finding.kind}" if finding.modality else finding.kind)


def _section(shown: "_Shown", number: int, finding: Finding) -> str:
    if not finding.concerns:
        return ""
    pictured = [c for c in finding.concerns if c.item or c.row is not None]
    lines = [c for c in finding.concerns if not c.item and c.row is None]
    cards = "".join(_concern(shown, concern) for concern in pictured[:CARDS])
    cards = f'<div class="concerns">{cards}</div>' if cards else ""
    words = "".join(f"<li>{escape(_cut(c.message))}</li>" for c in lines[:LINES])
    words = f'<ul class="lines">{words}</ul>' if words else ""
    total, here = len(finding.concerns), len(pictured[:CARDS]) + len(lines[:LINES])
    rest = f'<p class="note">{here:,} of {total:,} shown.</p>' if here < total else ""
    badge = f'<span class="badge {finding.severity}">{finding.severity}</span>'
    return (
        f'<h2 id="f{number}">{_title(finding)} {badge}</h2><p>{escape(finding.sentence)}.</p>'
        f'<p class="lead">{escape(MEANING[finding.kind])}</p>{cards}{words}{rest}'
    )


def _concern(shown: "_Shown", concern: Concern) -> str:
    rows = [row for row in dict.fromkeys((concern.row, concern.other_row)) if row is not None]
    if concern.item is not None:
        places = [(concern.item, concern.row), (concern.other, concern.other_row)]
        beside = concern.row != concern.other_row  # else the other side of the pair is shown itself
        sides = [shown.item(*place) + (shown.texts(place[0], row) if beside else "") for place, row in places if place]
    else:
        sides = list(dict.fromkeys(shown.row(row) for row in rows))  # the same pair twice is shown once
    # A count is in the message.
    facts = [f"{concern.score:.3f}"] if concern.score is not None and not concern.score.is_integer() else []
    facts += [concern.message] if concern.message else []
    facts += [("row " if len(rows) == 1 else "rows ") + " and ".join(f"{row + 1:,}" for row in rows)] if rows else []
    sides = [f'<div class="side">{side}</div>' for side in sides]
    meta = f'<div class="meta">{escape(_cut(" · ".join(facts)))}</div>'
    return f'<div class="concern"><div class="sides">{"".join(sides)}</div>{meta}</div>'


def _cut(text: str) -> str:
    return text if len(text) <= TEXT else f"{text[:TEXT]}…"


class _Shown:
    """Items as HTML, as long as there is room; each is decoded in another process, and once."""

    def __init__(self, pairs: Pairs, decoders: Decoders) -> None:
        self._pairs, self._decoders = pairs, decoders
        self._bytes = 0
        self._known: dict[tuple[str, int], str] = {}
        self.left_out = 0

    def row(self, row: int) -> str:
        """Show all items of a row of the table."""
        places = ((name, int(rows[row])) for name, rows in self._pairs.rows.items())
        return "".join(self.item(name, i) for name, i in places if i >= 0)

    def item(self, name: str, i: int) -> str:
        """Show one item: a picture, a player or a text, with its name."""
        items = self._pairs.items[name]
        value = str(items.values[i] if items.values[i] is not None else items.ids[i])
        if items.kind == "text":
            return f"<p>{escape(_cut(value))}</p>"
        return f'{self._media(items, i)}<p class="meta">{escape(_cut(value))}</p>'

    def texts(self, name: str, row: int | None) -> str:
        """Show the texts of the row that an item was found in; nothing for a text."""
        if row is None or self._pairs.items[name].kind == "text":
            return ""
        found = [(other, int(rows[row])) for other, rows in self._pairs.rows.items()]
        return "".join(self.item(other, i) for other, i in found if i >= 0 and self._pairs.items[other].kind == "text")

    def _media(self, items: Items, i: int) -> str:
        if items.kind not in ("image", "audio", "video") or (items.values[i] is None and items.content is None):
            return ""
        if (items.name, i) not in self._known:
            self._known[items.name, i] = self._embedded(items, i)
        return self._known[items.name, i]

    def _embedded(self, items: Items, i: int) -> str:
        if self._bytes > MOST_BYTES:
            self.left_out += 1
            return ""
        show: Callable[[Any], tuple[str, bytes]] = _clip if items.kind == "audio" else _picture
        content = b""
        with suppress(ItemError, FusemixError):  # a file that is gone, and a library that is not there
            kind, content = show(self._decoders.submit(items.kind, items.source(i)).result())
        if not content:
            return ""
        self._bytes += len(content)
        source = f"data:{kind};base64,{b64encode(content).decode()}"
        if items.kind == "audio":
            return f'<audio controls preload="none" src="{source}"></audio>'
        return f'<img alt="" src="{source}">'


def _picture(image: Any) -> tuple[str, bytes]:
    """Return a small JPEG of a picture, or of the middle frame of a video."""
    image = image[len(image) // 2] if isinstance(image, list) else image
    image.thumbnail((PICTURE, PICTURE))
    out = BytesIO()
    image.save(out, format="JPEG", quality=80, optimize=True)
    return "image/jpeg", out.getvalue()


def _clip(sound: Any) -> tuple[str, bytes]:
    """Return the first seconds of a sound."""
    import soundfile

    out = BytesIO()
    soundfile.write(out, sound.samples[: CLIP * sound.rate], sound.rate, format="OGG", subtype="VORBIS")
    return "audio/ogg", out.getvalue()
