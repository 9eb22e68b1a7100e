"""One HTML file that works without a server: the page's modules and styles, and a block of data.

The modules are those of ``web/static``, so pictures equal those of ``saccade view``. Browsers do not load modules from
local files, so the modules are joined into one script, in order. The content security policy names the hashes of that
script and of the styles: nothing else runs, nothing is fetched.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np

from saccade.errors import SaccadeError, UsageError
from saccade.viz.quantised import Quantised

MOST_BYTES = 24 * 2**20  # of weights in one page, one byte each
IMPORT = re.compile(r'^import \{([^}]*)\} from "\./([\w.]+)";\n', re.MULTILINE)
EXPORT = re.compile(r"^export (async function|function|class|const) (\w+)", re.MULTILINE)
LEFT = re.compile(r"^(import|export)\b.*", re.MULTILINE)


def packed(values: np.ndarray) -> str:
    """The bytes of an array, deflated, as base64; ``embedded_data.js`` opens it."""
    return base64.b64encode(zlib.compress(np.ascontiguousarray(values).tobytes(), 6)).decode("ascii")


def block(rows: Quantised) -> dict[str, str]:
    """Rows of weights as ``embedded_data.js`` takes them."""
    return {name: packed(getattr(rows, name)) for name in ("codes", "largest", "smallest")}


def standalone(title: str, entry: str, data: Mapping[str, Any], *, instead: Mapping[str, str] | None = None) -> str:
    """The page as text.

    Parameters
    ----------
    title : str
        Title of the document.
    entry : str
        The module that starts the page; it reads ``data`` from the element ``#data``.
    data : mapping
        JSON values.
    instead : mapping, optional
        Modules that replace others with the same exports, e.g. {"server_api.js": "embedded_api.js"}.
    """
    script = joined(entry, instead or {})
    style = _static("style.css") + _static("standalone.css")
    # The HTML parser must not find the end of the element, or a comment, inside the data.
    inside = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{html.escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        '<main id="page"></main>\n<div id="said" class="visually-hidden" role="status" aria-live="polite"></div>\n'
        f'<script type="application/json" id="data">{inside}</script>\n<script>{script}</script>\n</body>\n</html>\n'
    )


def kept_layers(depth: int, layer_bytes: int, asked: int) -> list[int]:
    """All layers, or as many as fit into MOST_BYTES, spread evenly, the last one and ``asked`` included.

    Raises
    ------
    UsageError
        Not even one layer fits.
    """
    room = MOST_BYTES // layer_bytes
    if room < 1:
        raise UsageError(
            "one layer does not fit into a page",
            got=f"{layer_bytes / 2**20:,.0f} MiB",
            expected=f"at most {MOST_BYTES // 2**20} MiB",
        )
    if room >= depth:
        return list(range(depth))
    spread = np.linspace(depth - 1, 0, room).round().astype(int).tolist()
    if asked not in spread:
        spread[min(range(len(spread)), key=lambda i: abs(spread[i] - asked))] = asked
    return sorted(set(spread))


def joined(entry: str, instead: Mapping[str, str]) -> str:
    """The module ``entry`` and all its imports as one script; each module becomes a function returning its exports."""
    order: list[str] = []
    _visit(entry, instead, order, ())
    parts = [f"const {_variable(name)} = (() => {{\n{_body(name, instead)}}})();\n" for name in order]
    return '"use strict";\n' + "".join(parts)


def _visit(name: str, instead: Mapping[str, str], order: list[str], above: Sequence[str]) -> None:
    if name in above:
        raise SaccadeError(f"modules of the page import each other in a circle: {' -> '.join((*above, name))}")
    if name in order:
        return
    for _, needed in IMPORT.findall(_static(name)):
        _visit(instead.get(needed, needed), instead, order, (*above, name))
    order.append(name)


def _body(name: str, instead: Mapping[str, str]) -> str:
    text = _static(name)
    exported = [match_[1] for match_ in EXPORT.findall(text)]

    def taken(match: re.Match[str]) -> str:
        names = match[1].replace(" as ", ": ")
        return f"const {{{names}}} = {_variable(instead.get(match[2], match[2]))};\n"

    text = EXPORT.sub(r"\1 \2", IMPORT.sub(taken, text))
    if (left := LEFT.search(text)) is not None or "</script" in text.lower():
        raise SaccadeError(f"{name} cannot be put into one file", got=left[0] if left else "</script")
    return f"{text}\nreturn {{ {', '.join(exported)} }};\n"


def _variable(name: str) -> str:
    return "module_" + re.sub(r"\W", "_", name)


def _static(name: str) -> str:
    return resources.files("saccade").joinpath("web", "static", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
