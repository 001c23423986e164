"""Takes passwords out of what is shown: an error or a line of code may hold a whole DSN."""

from __future__ import annotations

import re

__all__ = ["without_secrets"]

_HIDDEN = "***"
#: ``scheme://user:password@host``
_IN_URL = re.compile(r"(?<=://)[^/\s'\"@]*:[^\s'\"@]*(?=@)")
#: ``password=...``, ``'password': '...'``, ``"token": "..."``, quoted or not
_NAMED = re.compile(
    r"""(?ix) (?P<name> \b\w* (?:password|passwd|pwd|secret|token|api_?key|credential)\w* ['"]? )
        (?P<is> \s*[=:]\s* )
        (?: (?P<quote>['"]) (?:\\.|(?!(?P=quote)).)* (?P=quote) | [^\s,;&)}\]'"]+ )"""
)


def without_secrets(text: str) -> str:
    """*text* with what looks like a password, or the user and password of a URL, replaced by
    ``***``.  It errs on the side of hiding."""
    text = _IN_URL.sub(_HIDDEN, text)
    return _NAMED.sub(lambda found: f"{found['name']}{found['is']}{_HIDDEN}", text)
