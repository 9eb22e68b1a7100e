"""Every error that saccade raises on purpose, and how it speaks.

The tree::

    SaccadeError                what, got, expected, hint
      UsageError                a wrong option, key or combination; exit code 2
        OutputInUse             another process writes to the same folder or file
      DataError                 something about the images or their table
        DamagedFile             one file that cannot be decoded; skipped, counted, named
        TooManyDamaged          more damaged files than --max-bad allows
      ModelError                a model, checkpoint or weights file that does not fit
       UnknownCost             a method or network whose training step cannot be traced
      TrainingError             a run that had to stop; the message names the last good checkpoint
        NonFiniteLoss
        StorageError            a full disk or an unwritable folder
        MemoryShort             a run that cannot fit into memory; the message says what would
      EvaluationError           a table that could not be trusted
        ContaminationError      test images or groups were seen in pretraining
      MissingDependency         an optional package; the message is the command that installs it
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class SaccadeError(Exception):
    """An error a person can act on: what happened, what was given, what was expected, what to do."""

    exit_code = 1

    def __init__(self, what: str, *, got: object = None, expected: object = None, hint: str | None = None):
        self.what, self.got, self.expected, self.hint = what, got, expected, hint
        lines = [what]
        if got is not None:
            lines.append(f"  got:      {got}")
        if expected is not None:
            lines.append(f"  expected: {expected}")
        if hint is not None:
            lines.append(f"  hint: {hint}")
        super().__init__("\n".join(lines))

    def in_one_line(self) -> str:
        """The whole message in one line, for lists of files.

        Examples
        --------
        >>> DamagedFile("ct: 1 missing slice", got="6 mm", expected="3 mm", hint="export it again").in_one_line()
        'ct: 1 missing slice (got 6 mm; expected 3 mm; hint: export it again)'
        """
        parts = (("got", self.got), ("expected", self.expected), ("hint:", self.hint))
        details = "; ".join(f"{name} {value}" for name, value in parts if value is not None)
        return " ".join(f"{self.what} ({details})".split() if details else self.what.split())


class UsageError(SaccadeError):
    exit_code = 2


class OutputInUse(UsageError):
    pass


class DataError(SaccadeError):
    pass


class DamagedFile(DataError):
    pass


class TooManyDamaged(DataError):
    pass


class ModelError(SaccadeError):
    pass


class UnknownCost(ModelError):
    pass


class TrainingError(SaccadeError):
    pass


class NonFiniteLoss(TrainingError):
    pass


class StorageError(TrainingError):
    pass


class MemoryShort(TrainingError):
    pass


class EvaluationError(SaccadeError):
    pass


class ContaminationError(EvaluationError):
    pass


class MissingDependency(SaccadeError):
    pass


def first_line(error: BaseException) -> str:
    """The first line of an exception's message; its type where there is no message.

    Examples
    --------
    >>> first_line(ValueError("too long\\nfor a table"))
    'too long'
    >>> first_line(KeyError())
    'KeyError'
    """
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def closest(word: str, known: Iterable[str]) -> str | None:
    """A "did you mean" for an unknown word, or None when nothing is near."""
    known = [str(k) for k in known]
    hits = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {hits[0]!r}?" if hits else None


def unknown(kind: str, word: str, known: Iterable[str]) -> UsageError:
    """The one way an unknown name, key or value is reported."""
    known = sorted(str(k) for k in known)
    return UsageError(f"unknown {kind} {word!r}", expected="one of " + ", ".join(known), hint=closest(word, known))


def out_of_range(what: str, got: object, last: int, *, first: int = 0, also: str = "") -> UsageError:
    """The one way a layer, head, token or tile that does not exist is reported.

    Parameters
    ----------
    what : str
        Such as "layer".
    got : object
        The index that was asked for.
    last, first : int
        The valid indices, both included.
    also : str
        Other valid values, such as "mean or all".
    """
    expected = f"{first} to {last}"
    return UsageError(f"no such {what}", got=got, expected=f"{also}, or {expected}" if also else expected)


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional dependency where it is used, or say the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependency(
            f"{purpose} needs the package {module!r}, which is not installed",
            hint=f'pip install "saccade[{extra}]"',
        ) from error
