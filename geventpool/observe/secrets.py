"""Takes passwords out of what is shown: an error or a line of code may hold a whole DSN."""

from __future__ import annotations

import re

__all__ = ["without_secrets"]

_HIDDEN = "***"
#: ``scheme://user:password@host``, up to the last @, as clients read it; a user may be a token.
_IN_URL = re.compile(r"""(?<=://) (?: [^/\s"]* | [^/\s"@:]*:[^\s"]* ) (?=@)""", re.VERBOSE)
#: ``password=...``, ``'password': b'...'``, ``token=Secret('...')``, ``Authorization: Bearer ...``
_NAMED = re.compile(
    r"""(?ix)
        (?P<name> (?: \b\w*
            (?: pass(?!ed\b|es\b|ing\b) | pwd | secret | token | api_?key | credential )
            \w* | \bauth(?:orization)?\b ) ['"]? )
        (?P<is> \s*[=:]\s* )
        (?: (?:\w+\()* [bfru]{0,2} (?P<quote>['"]) (?:\\.|(?!(?P=quote)).)* (?P=quote)
            | (?:bearer|basic|token)\s+\S+
            | \S+ )"""
)


def without_secrets(text: str) -> str:
    """*text* with what looks like a password, or the user and password of a URL, replaced by
    ``***``.  It errs on the side of hiding."""
    text = _IN_URL.sub(_HIDDEN, text)
    return _NAMED.sub(lambda found: f"{found['name']}{found['is']}{_HIDDEN}", text)
