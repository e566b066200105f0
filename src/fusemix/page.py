"""One HTML file that needs nothing beside it: the style of every page we write, how it holds pictures and figures."""

from base64 import b64encode
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from fusemix import durable
from fusemix.curves import rendered
from fusemix.data.images import load_image
from fusemix.data.items import located
from fusemix.data.media import IMAGE_SUFFIXES, ItemError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

THUMBNAIL = 96  # pixels

STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --soft: #667085; --line: #e2e6ed; --paper: #fff; --card: #f6f8fb; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6eaf1; --soft: #98a2b3; --line: #2b3444; --paper: #10151f; --card: #182130; }
}
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem;
  margin: 2.5rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .8rem; }
p.lead, p.note, figcaption, .meta { color: var(--soft); margin: .2rem 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .35rem .6rem; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); } th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
tr.own td { font-weight: 650; }
.query { margin: 1.1rem 0 .4rem; font-weight: 600; }
.hits { display: flex; flex-wrap: wrap; gap: .6rem; }
.hit { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .5rem; width: 8.2rem; }
.hit img { width: 96px; height: 96px; object-fit: contain; background: #fff; border-radius: .3rem; display: block;
  margin: 0 auto; }
.hit .label { font-size: .78rem; line-height: 1.25; margin-top: .35rem; overflow-wrap: anywhere; }
.hit .meta { font-size: .75rem; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; } .plots figure { margin: 0; flex: 1 1 24rem; background: #fff;
  border: 1px solid var(--line); border-radius: .5rem; padding: .5rem; }
.plots svg { width: 100%; height: auto; } figcaption { font-size: .85rem; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .8rem; overflow-x: auto; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; }
dt { color: var(--soft); } dd { margin: 0; }
"""


def write_page(path: Path, title: str, lead: str, body: str, style: str = "") -> None:
    """Write a page, whole or not at all.

    Args:
        path: of the HTML file.
        title: heading, as text.
        lead: the line below it, as text.
        body: HTML.
        style: CSS of this page, after that of every page.
    """
    html = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head><body>"
        f'<h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>{body}</body></html>\n'
    )
    durable.write(path, html.encode())


def inline(figure: "Figure") -> str:
    """Return a figure as SVG without the head of a file, so that it can stand in HTML."""
    text = rendered(figure, "svg").decode()
    return text[text.index("<svg") :]


def thumbnail(path: str | None) -> str:
    """Show a picture, re-encoded; nothing for what is none or cannot be read.

    Args:
        path: of the file; one that lies in a tar or a table is named as `data.items.located` takes it.
    """
    if path is None:
        return ""
    source = located(Path(path))
    if isinstance(source, Path) and source.suffix.lower() not in IMAGE_SUFFIXES:
        return ""
    try:
        image = load_image(source)
    except ItemError:
        return ""
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    out = BytesIO()
    image.save(out, format="PNG", optimize=True)
    return f'<img alt="" src="data:image/png;base64,{b64encode(out.getvalue()).decode()}">'
