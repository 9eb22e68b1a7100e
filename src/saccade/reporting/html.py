"""The HTML of a report: elements that escape their text, tables, figures and the page itself."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

VOID = ("meta", "img", "br", "wbr", "link")


class Html(str):
    """Markup that is safe; any other text is escaped where it enters the page."""


def h(name: str, attributes: Mapping[str, object] | None = None, *children: object) -> Html:
    """An element; children that are not Html are escaped, None is left out, lists are flattened.

    Examples
    --------
    >>> h("p", None, "a < b")
    '<p>a &lt; b</p>'
    """
    words = "".join(f' {key}="{html.escape(str(value))}"' for key, value in (attributes or {}).items())
    if name in VOID:
        return Html(f"<{name}{words}>")
    return Html(f"<{name}{words}>{join(children)}</{name}>")


def join(children: Iterable[object]) -> Html:
    """The children one after the other, escaped unless they are Html."""
    parts = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, Html):
            parts.append(str(child))
        elif isinstance(child, (list, tuple)):
            parts.append(str(join(child)))
        else:
            # A number and its percent sign stay on one line.
            parts.append(re.sub(r"(?<=\d) (?=%)", "\u00a0", html.escape(str(child))))
    return Html("".join(parts))


def breakable(name: object) -> Html:
    """A long name with line-break opportunities after ``_``, ``:``, ``/`` and ``.``."""
    pieces = re.split(r"(?<=[_:/.])", str(name))
    return Html("<wbr>".join(html.escape(piece) for piece in pieces))


# --- numbers -------------------------------------------------------------------------------------


def number(value: Any) -> float:
    """A float; NaN for anything that is not a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    return float(value)


def sequence(value: Any) -> list[Any]:
    """The list itself; an empty one for anything else."""
    return value if isinstance(value, list) else []


def count(value: Any) -> str:
    """An integer with separators, such as 2,651; a dash for anything that is not a number."""
    as_number = number(value)
    return f"{as_number:,.0f}" if math.isfinite(as_number) else "–"


def duration(seconds: float) -> str:
    """Seconds as 42 s, 8.4 min or 3.3 h."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def percent(fraction: float) -> str:
    """0.01 to "1 %"."""
    return f"{100 * fraction:.3g} %" if math.isfinite(fraction) else "–"


# --- blocks --------------------------------------------------------------------------------------


def section(key: str, title: str, *children: object) -> Html:
    return h(
        "section",
        {"id": key, "aria-labelledby": f"{key}-title"},
        h("h2", {"id": f"{key}-title"}, title),
        *children,
    )


def missing(*words: object) -> Html:
    """A short sentence in place of missing content."""
    return h("p", {"class": "missing"}, *words)


def note(*words: object) -> Html:
    return h("p", {"class": "note"}, *words)


def paragraphs(text: object) -> Html:
    """Plain text with empty lines between paragraphs."""
    return join(h("p", None, part.strip()) for part in re.split(r"\n\s*\n", str(text)) if part.strip())


def scroll(label: str, *children: object) -> Html:
    """A region that scrolls horizontally on its own, also by keyboard."""
    return h("div", {"class": "scroll", "role": "region", "aria-label": label, "tabindex": "0"}, *children)


def facts(items: Sequence[tuple[object, object]], kind: str = "facts") -> Html:
    """Names and values; kind "numbers" shows large values."""
    return h("dl", {"class": kind}, [h("div", None, h("dt", None, k), h("dd", None, v)) for k, v in items])


def score_table(
    label: str, caption: Sequence[object], head: Html, bodies: Sequence[Html], columns: int, kind: str = "scores"
) -> Html:
    """A wide table of scores; its caption does not scroll with it."""
    attributes = {"class": kind, "style": f"--columns:{columns}"}
    body = h("table", attributes, h("thead", None, head), bodies)
    return join([h("p", {"class": "caption"}, *caption), scroll(label, body)])


def table(label: str, head: Sequence[object], rows: Sequence[Sequence[object]], kind: str = "plain") -> Html:
    """A table whose first column names the rows."""
    top = h("tr", None, [h("th", {"scope": "col"}, cell) for cell in head])
    body = [h("tr", None, h("th", {"scope": "row"}, row[0]), [h("td", None, cell) for cell in row[1:]]) for row in rows]
    return scroll(label, h("table", {"class": kind}, h("thead", None, top), h("tbody", None, body)))


def details(summary: object, *children: object) -> Html:
    return h("details", None, h("summary", None, summary), *children)


def page(title: str, language: str, *body: object) -> str:
    """The whole document: one file without scripts or external resources."""
    style = Path(__file__).with_name("templates").joinpath("report.css").read_text(encoding="utf-8")
    head = h(
        "head",
        None,
        h("meta", {"charset": "utf-8"}),
        h("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        h("meta", {"name": "color-scheme", "content": "light dark"}),
        # Nothing may be fetched even if unescaped text entered the page.
        h(
            "meta",
            {
                "http-equiv": "Content-Security-Policy",
                "content": "default-src 'none'; img-src data:; style-src 'unsafe-inline'",
            },
        ),
        h("title", None, title),
        h("style", None, Html(style)),
    )
    return "<!doctype html>\n" + h("html", {"lang": language}, head, h("body", None, *body)) + "\n"
