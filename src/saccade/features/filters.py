"""Filters of a feature table by its columns: ``label=lung_n split=train,val group!=7``.

All conditions must hold. A comma means "any of", ``!=`` means "none of", an empty value means "missing".
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
LISTED = 12  # values listed in a message


@dataclass(frozen=True)
class Condition:
    """The column has one of the values, or none of them; the value "" stands for "missing"."""

    column: str
    values: tuple[str, ...]
    negated: bool = False


def parse(text: str) -> list[Condition]:
    """The conditions of a filter. Raises UsageError for a syntax error."""
    conditions, at = [], 0
    while text[at:].strip():
        match = CONDITION.match(text, at)
        if match is None:
            raise UsageError(
                "cannot parse the filter",
                got=text[at:].strip(),
                expected="for example label=lung_n split=train,val group!=7",
                hint="quote a value with spaces: label='two words'",
            )
        values = tuple(_plain(word) for word in re.findall(WORD, match[3])) or ("",)
        conditions.append(Condition(_plain(match[1]), values, negated=match[2] == "!="))
        at = match.end()
    return conditions


def _plain(word: str) -> str:
    quote = word[0]
    return word[1:-1].replace(2 * quote, quote) if quote in "\"'" else word


def mask(conditions: Sequence[Condition], columns: Columns, rows: int) -> np.ndarray:
    """bool [N]: which rows fulfil all conditions.

    Raises UsageError for an unknown column, and for a value that no row has, which may be a misspelling.
    """
    selected = np.ones(rows, dtype=bool)
    for condition in conditions:
        if condition.column not in columns:
            raise unknown("column of the table", condition.column, columns)
        values = [value or "" for value in columns[condition.column]]
        check_values(condition, sorted(set(values)))
        values_of_condition = set(condition.values)
        selected &= np.fromiter(((value in values_of_condition) != condition.negated for value in values), bool, rows)
    return selected


def check_values(condition: Condition, present: Sequence[str]) -> None:
    """Raise UsageError when no row has one of the values."""
    for value in condition.values:
        if value not in present:
            listed = ", ".join(name or "(missing)" for name in present[:LISTED])
            raise UsageError(
                f"no image has {condition.column}={value}",
                expected=f"one of {listed}{', ...' if len(present) > LISTED else ''}",
                hint=closest(value, present),
            )


def to_sql(conditions: Sequence[Condition], names: Mapping[str, str]) -> str:
    """The conditions in SQL; ``names`` maps to the stored column names. Values are quoted."""
    parts = []
    for condition in conditions:
        if condition.column not in names:
            raise unknown("column of the table", condition.column, names)
        column = names[condition.column]
        listed = ", ".join("'" + value.replace("'", "''") + "'" for value in condition.values)
        value_or_empty = f"coalesce({column}, '')"  # NULL is neither IN nor NOT IN in SQL
        parts.append(f"{value_or_empty} {'NOT IN' if condition.negated else 'IN'} ({listed})")
    return " AND ".join(parts)
