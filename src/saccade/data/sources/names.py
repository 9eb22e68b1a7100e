"""One form of names for files, members of archives and paths in tables: forward slashes, Unicode NFC, case kept.

Archives made on Windows may hold back-slashes (ZIP appnote 4.4.17 asks for slashes), and macOS writes names in NFD.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable


def normal_name(name: str) -> str:
    """The name in the one form.

    Examples
    --------
    >>> normal_name("train\\\\b\\\\01.png"), normal_name("./a/1.png")
    ('train/b/01.png', 'a/1.png')
    """
    return unicodedata.normalize("NFC", name.replace("\\", "/")).removeprefix("./")


def by_normal_name(names: Iterable[str]) -> dict[str, str]:
    """The names as they are stored, by their normal form; two that differ in form only are both there.

    Examples
    --------
    >>> by_normal_name(["a\\\\1.png", "b/2.png"])
    {'b/2.png': 'b/2.png', 'a/1.png': 'a\\\\1.png'}
    """
    stored: dict[str, str] = {}
    for name in sorted(names, key=lambda name: normal_name(name) != name):
        key = normal_name(name)
        stored[name if key in stored else key] = name
    return stored
