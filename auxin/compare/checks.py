"""Checks whose failure is one sentence for the user."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from auxin.errors import ConfigError


def require(condition: bool, sentence: str) -> None:
    """Raise unless a condition holds.

    Args:
        condition: What must hold.
        sentence: What is wrong, and what to do.

    Raises:
        ConfigError: If it does not hold.
    """
    if not condition:
        raise ConfigError(sentence)


def known_only(found: Iterable[Any], known: Iterable[str], where: str) -> None:
    """Refuse a name that is not known.

    Args:
        found: The names given.
        known: The names there are.
        where: What to call the place in the error.
    """
    for key in found:
        require(key in known, f"{where}: there is no {key!r}{closest(key, known)}")


def closest(word: object, known: Iterable[str]) -> str:
    """Return the end of a sentence that helps with an unknown word.

    Args:
        word: The unknown word.
        known: The words there are.

    Returns:
        The known word that is most alike, or else all of them.
    """
    names = list(known)
    close = difflib.get_close_matches(str(word), names, 1)
    return f"; did you mean {close[0]!r}?" if close else f" among {', '.join(map(str, names))}."
