"""Filters of a feature table by what is known of its images: ``label=lung_n split=train,val group!=7``.

All conditions must hold. A comma means "any of", ``!=`` means "none of", nothing after the sign means "not known".
Quotes keep a name or value with spaces or commas together; a quote inside them is written twice. The same
conditions become a mask for a table in memory and SQL for LanceDB.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from saccade.errors import UsageError, closest, unknown

Columns = Mapping[str, Sequence[str | None]]
WORD = r"""("(?:[^"]|"")*"|'(?:[^']|'')*'|[^\s=!,'"]+)"""
CONDITION = re.compile(rf"\s*{WORD}(!?=)({WORD}?(?:,{WORD})*)(?=\s|$)")
LISTED = 12  # known values named in a message


@dataclass(frozen=True)
class Condition:
    """The column has one of the values, or none of them; the value "" stands for "not known"."""

    column: str
    values: tuple[str, ...]
    negated: bool = False


def parse(text: str) -> list[Condition]:
    """The conditions of a filter. Raises UsageError for words that are none."""
    found, at = [], 0
    while text[at:].strip():
        match = CONDITION.match(text, at)
        if match is None:
            raise UsageError(
                "a filter is made of conditions",
                got=text[at:].strip(),
                expected="for example label=lung_n split=train,val group!=7",
                hint="put a value with spaces into quotes: label='two words'",
            )
        values = tuple(_plain(word) for word in re.findall(WORD, match[3])) or ("",)
        found.append(Condition(_plain(match[1]), values, negated=match[2] == "!="))
        at = match.end()
    return found


def _plain(word: str) -> str:
    quote = word[0]
    return word[1:-1].replace(2 * quote, quote) if quote in "\"'" else word


def mask(conditions: Sequence[Condition], columns: Columns, rows: int) -> np.ndarray:
    """Which rows fulfil all conditions, bool [N].

    Raises UsageError for an unknown column, and for a value that no row has: an empty answer to a misspelt name
    would be believed.
    """
    kept = np.ones(rows, dtype=bool)
    for one in conditions:
        if one.column not in columns:
            raise unknown("column of the table", one.column, columns)
        held = [value or "" for value in columns[one.column]]
        check_values(one, sorted(set(held)))
        wanted = set(one.values)
        kept &= np.fromiter(((value in wanted) != one.negated for value in held), bool, rows)
    return kept


def check_values(one: Condition, known: Sequence[str]) -> None:
    """Raise UsageError when no row has one of the values."""
    for value in one.values:
        if value not in known:
            listed = ", ".join(name or "(not known)" for name in known[:LISTED])
            raise UsageError(
                f"no image has {one.column}={value}",
                expected=f"one of {listed}{', ...' if len(known) > LISTED else ''}",
                hint=closest(value, known),
            )


def to_sql(conditions: Sequence[Condition], names: Mapping[str, str]) -> str:
    """The same in SQL; ``names`` are those of the columns there. Values are quoted, whatever is in them."""
    parts = []
    for one in conditions:
        if one.column not in names:
            raise unknown("column of the table", one.column, names)
        column = names[one.column]
        listed = ", ".join("'" + value.replace("'", "''") + "'" for value in one.values)
        known = f"coalesce({column}, '')"  # a value that is not known is neither in nor out for SQL
        parts.append(f"{known} {'NOT IN' if one.negated else 'IN'} ({listed})")
    return " AND ".join(parts)
