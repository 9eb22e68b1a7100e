"""Tokens and words: what a text model reads, what a person reads, and how attention goes from one to the other.

A word may be several tokens. As usual since Clark et al. 2019 (arXiv:1906.04341, section 5): attention *to* a word is
the sum over its tokens, attention *from* a word the mean over them; so rows of words sum to 1 as well.
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

    id           its row in the model's table         piece    as the vocabulary spells it ("##ials")
    text         the letters of the text it stands for
    start, stop  where in the text, in characters; 0, 0 for what the text does not hold
    word         number of the word by the tokenizer's own reckoning; None for special tokens
    special      added by the tokenizer ([CLS], [SEP], <s>), not in the text
    unknown      the vocabulary has nothing for these letters
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
    """Tokens ``first`` to ``last`` (inclusive), read as one."""

    text: str
    first: int
    last: int
    special: bool


@dataclass(frozen=True)
class TextOptions:
    """What to ask of a model and a sentence.

    query    a word, or its number counted from 0 (special tokens included); None: every word
    layer    0-based, None is the last          head  ``all``, ``mean`` or the number of one
    tokens   show the model's tokens instead of whole words
    special  draw the tokens that the tokenizer adds ([CLS], [SEP]); their share is said either way
    """

    query: str | None = None
    layer: int | None = None
    head: str = "all"
    tokens: bool = False
    special: bool = False


def words_of(text: str, tokens: Sequence[Token]) -> tuple[Word, ...]:
    """Tokens joined to words: where the tokenizer says so, never across a space. Special tokens stand alone."""
    found: list[Word] = []
    for index, token in enumerate(tokens):
        before = tokens[index - 1] if index else None
        if before is not None and _goes_on(text, before, token):
            whole = text[tokens[found[-1].first].start : token.stop]
            found[-1] = Word(whole, found[-1].first, index, False)
        else:
            found.append(Word(token.text, index, index, token.special))
    return tuple(found)


def _goes_on(text: str, before: Token, token: Token) -> bool:
    if token.special or before.special or token.word != before.word:
        return False
    # Tokenizers without words of their own give one number to the whole text: a space still ends a word.
    return not any(letter.isspace() for letter in text[before.stop : token.start])


def merge(weights: np.ndarray, words: Sequence[Word]) -> np.ndarray:
    """Attention between tokens [... N N] to attention between words [... W W]: sum over keys, mean over queries."""
    starts = [word.first for word in words]
    lengths = np.array([word.last - word.first + 1 for word in words], dtype=weights.dtype)
    to_words = np.add.reduceat(weights, starts, axis=-1)
    return np.add.reduceat(to_words, starts, axis=-2) / lengths[:, None]


def find_word(query: str, words: Sequence[Word]) -> int:
    """The word that a query names: its number, or its letters (upper and lower case alike; the first of several).

    Raises UsageError when there is none.
    """
    if query.lstrip("-").isdigit():
        number = int(query)
        if not -len(words) <= number < len(words):
            raise UsageError("no such word", got=number, expected=f"0 to {len(words) - 1}")
        return number % len(words)
    wanted = query.casefold()
    for index, word in enumerate(words):
        if word.text.casefold() == wanted:
            return index
    hint = closest(query, [word.text for word in words]) or "a number counts words from 0, special tokens included"
    raise UsageError(f"the text has no word {query!r}", hint=hint)


def columns(text: str) -> int:
    """How many columns a terminal gives to a text: wide letters and emoji take two, marks none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def printable(text: str) -> str:
    """A text for one line of a terminal: control and direction characters are shown as what they are called."""
    return "".join(f"<U+{ord(c):04X}>" if unicodedata.category(c) in ("Cc", "Cf") else c for c in text)
