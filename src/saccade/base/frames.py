"""Results as tables: columns -> pandas, polars, or an HTML table for notebooks.

pandas and polars are optional (extra ``frames``) and are imported only here, when a table is asked for.
"""

from __future__ import annotations

import html
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from saccade.errors import require

if TYPE_CHECKING:
    import pandas
    import polars

HTML_ROWS, HTML_COLUMNS = 20, 12
"""The most that a notebook shows of a table."""


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Columns of a list of rows; None where a row lacks a column.

    >>> columns_of([{"a": 1}, {"a": 2, "b": 3}])
    {'a': [1, 2], 'b': [None, 3]}
    """
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


class Tabular(ABC):
    """A result with a table for pandas, polars and notebooks."""

    @abstractmethod
    def frame_columns(self) -> Mapping[str, Any]:
        """Values by column."""

    @abstractmethod
    def _repr_html_(self) -> str: ...

    def to_pandas(self) -> pandas.DataFrame:
        """The table as a pandas.DataFrame. Raises MissingDependency without pandas."""
        frame: pandas.DataFrame = require("pandas", "frames", "to_pandas").DataFrame(dict(self.frame_columns()))
        return frame

    def to_polars(self) -> polars.DataFrame:
        """The table as a polars.DataFrame. Raises MissingDependency without polars."""
        frame: polars.DataFrame = require("polars", "frames", "to_polars").DataFrame(dict(self.frame_columns()))
        return frame


def to_html(title: str, columns: Mapping[str, Any]) -> str:
    """A small HTML table, everything escaped: the first rows and columns, and how many there are.

    >>> to_html("<b>", {"a": [0.25]})
    '<table><caption>&lt;b&gt;</caption><tr><th>a</th></tr><tr><td>0.25</td></tr></table>'
    """
    names = list(columns)[:HTML_COLUMNS]
    count = len(next(iter(columns.values()), ()))
    cut = count > HTML_ROWS or len(columns) > len(names)
    caption = f"{title} ({count:,} rows, {len(columns):,} columns)" if cut else title
    lines = ["".join(f"<th>{html.escape(name)}</th>" for name in names)]
    for row in range(min(count, HTML_ROWS)):
        lines.append("".join(f"<td>{html.escape(_cell(columns[name][row]))}</td>" for name in names))
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><caption>{html.escape(caption)}</caption>{body}</table>"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text if len(text) <= 80 else text[:79] + "…"


def text_to_html(text: str) -> str:
    """Plain text as it is printed, escaped.

    >>> text_to_html("a < b")
    '<pre>a &lt; b</pre>'
    """
    return f"<pre>{html.escape(text)}</pre>"
