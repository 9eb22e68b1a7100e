"""Cards of other packages, read from entry points (PyPA, "Entry points specification")."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, TypeVar

from saccade.errors import UsageError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

C = TypeVar("C")


def load_card(entry: EntryPoint, kind: type[C]) -> C:
    """Load the card that an entry point refers to.

    Raises
    ------
    UsageError
        The entry point cannot be imported or refers to something else. The message names it and its package.
    """
    package = entry.dist.name if entry.dist else "unknown package"
    try:
        card = entry.load()
    except Exception as error:  # importing code of others can raise anything
        raise UsageError(
            f"the plug-in {entry.name} ({entry.value}) cannot be loaded",
            got=f"{type(error).__name__}: {error}",
            hint=f"update or uninstall {package}",
        ) from error
    if not isinstance(card, kind):
        raise UsageError(
            f"the plug-in {entry.name} ({entry.value}) has the wrong type",
            got=type(card).__name__,
            expected=f"{kind.__module__}.{kind.__name__}, for entry points of the group {entry.group}",
            hint=f"update or uninstall {package}",
        )
    return card


@functools.cache
def installed_cards(group: str, kind: type[C]) -> tuple[C, ...]:
    """Load every entry point of a group, in the order of their names.

    Parameters
    ----------
    group : str
        Name of the entry-point group, e.g. ``saccade.backbones``.
    kind : type
        Class of the cards that the entry points refer to.
    """
    from importlib.metadata import entry_points

    return tuple(load_card(entry, kind) for entry in sorted(entry_points(group=group), key=lambda entry: entry.name))
