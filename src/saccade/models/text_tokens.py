"""Tokens and words of a text, and attention between words from attention between tokens.

A word may be several tokens. Following Clark et al. 2019 (arXiv:1906.04341, section 5), attention *to* a word is the
sum over its tokens, attention *from* a word the mean over them; rows of words sum to 1 as well.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from saccade.errors import UsageError, closest


@dataclass(frozen=True)
class Token:
    """One token as the model gets it.

    Parameters
    ----------
    id : int
        Its row in the embedding table.
    piece : str
        As spelled in the vocabulary, e.g. ``##ials``.
    text : str
        The characters of the text it stands for.
    start, stop : int
        Their position in the text, in characters; 0, 0 for special tokens.
    word : int or None
        Index of the word according to the tokenizer; None for special tokens.
    special : bool
        Added by the tokenizer ([CLS], [SEP], <s>), not in the text.
    unknown : bool
        The vocabulary does not contain these characters.
    """

    id: int
    piece: str
    text: str
    start: int
    stop: int
    word: int | None
    special: bool
    unknown: bool


@dataclass(frozen=True)
class Word:
    """Tokens ``first`` to ``last`` (inclusive) as one word."""

    text: str
    first: int
    last: int
    special: bool


@dataclass(frozen=True)
class TextOptions:
    """Options of ``attend_text``.

    Parameters
    ----------
    query : str, optional
        A word, or its index from 0 (special tokens included); None: every word.
    layer : int, optional
        From 0; None: the last.
    head : str
        ``all``, ``mean`` or an index.
    tokens : bool
        Show tokens instead of words.
    special : bool
        Draw special tokens ([CLS], [SEP]); their attention is reported in any case.
    """

    query: str | None = None
    layer: int | None = None
    head: str = "all"
    tokens: bool = False
    special: bool = False


def words_of(text: str, tokens: Sequence[Token]) -> tuple[Word, ...]:
    """Join tokens to words as the tokenizer does, but never across a space; special tokens stay separate."""
    words: list[Word] = []
    for index, token in enumerate(tokens):
        before = tokens[index - 1] if index else None
        if before is not None and _goes_on(text, before, token):
            joined = text[tokens[words[-1].first].start : token.stop]
            words[-1] = Word(joined, words[-1].first, index, False)
        else:
            words.append(Word(token.text, index, index, token.special))
    return tuple(words)


def _goes_on(text: str, before: Token, token: Token) -> bool:
    if token.special or before.special or token.word != before.word:
        return False
    # Tokenizers without a notion of words give the whole text one index: a space still ends a word.
    return not any(letter.isspace() for letter in text[before.stop : token.start])


def merge(weights: np.ndarray, words: Sequence[Word]) -> np.ndarray:
    """Attention between words from attention between tokens: sum over keys, mean over queries.

    Parameters
    ----------
    weights : ndarray
        [... N N].
    words : sequence of Word
        W words that cover the N tokens.

    Returns
    -------
    ndarray
        [... W W].

    References
    ----------
    Clark et al. 2019, arXiv:1906.04341, section 5.

    Examples
    --------
    >>> words = [Word("[CLS]", 0, 0, True), Word("cells", 1, 2, False)]
    >>> merge(np.full((3, 3), 1 / 3), words).round(2)
    array([[0.33, 0.67],
           [0.33, 0.67]])
    """
    starts = [word.first for word in words]
    lengths = np.array([word.last - word.first + 1 for word in words], dtype=weights.dtype)
    to_words = np.add.reduceat(weights, starts, axis=-1)
    merged: np.ndarray = np.add.reduceat(to_words, starts, axis=-2) / lengths[:, None]
    return merged


def find_word(query: str, words: Sequence[Word]) -> int:
    """Index of the word that a query names: by its index, or by its text (ignoring case; the first of several).

    Raises UsageError where the text has no such word.
    """
    if query.lstrip("-").isdigit():
        number = int(query)
        if not -len(words) <= number < len(words):
            raise UsageError("no such word", got=number, expected=f"0 to {len(words) - 1}")
        return number % len(words)
    folded = query.casefold()
    for index, word in enumerate(words):
        if word.text.casefold() == folded:
            return index
    hint = closest(query, [word.text for word in words]) or "or name its index from 0, special tokens included"
    raise UsageError(f"the text has no word {query!r}", hint=hint)


def columns(text: str) -> int:
    """Width of a text in terminal columns: wide characters and emoji take two, combining marks none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def printable(text: str) -> str:
    """A text for one line of a terminal: control and format characters are replaced by their code points."""
    return "".join(f"<U+{ord(c):04X}>" if unicodedata.category(c) in ("Cc", "Cf") else c for c in text)
