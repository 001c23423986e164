"""Takes passwords out of what is shown: an error or a line of code may hold a whole DSN."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["as_shown", "without_secrets"]

_HIDDEN = "***"
# Neither takes a time that grows with the square of the text: an error may be a server's own.
_URLS = re.compile(r"""://[^\s"]*""")
_IN_LOGIN = re.compile("[:@/]")
#: ``password=...``, ``'password': b'...'``, ``token=Secret('...')``, ``Authorization: Bearer ...``
_NAMED = re.compile(
    r"""(?ix)
        (?P<name> \b (?:
              (?= \w* (?: pass(?!ed\b|es\b|ing\b) | pwd | secret | token | credential
                        | (?: api | access | private )_?key | auth(?:orization|_data)?\b )) \w+
            | (?: api | access | private )-key | pw | identified\s+by ) ['"]? )
        (?P<is> \s*[=:]\s* | \s+(?=['"]) )
        (?: [\[(] [^\])]* [\])]
            | (?:\w+\()* [bfru]{0,2} (?P<quote>['"]) (?:\\.|(?!(?P=quote)).)* (?P=quote)
            | (?:bearer|basic|token)\s+\S+
            | \S+ )"""
)

#: But for line ends and tabs; those that turn the direction of the text; surrogates.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def without_secrets(text: str) -> str:
    """*text* with what looks like a password, or the user and password of a URL, replaced by
    ``***``.  It errs on the side of hiding."""
    text = _URLS.sub(_without_logins, text)
    return _NAMED.sub(lambda found: f"{found['name']}{found['is']}{_HIDDEN}", text)


def _without_logins(found: re.Match[str]) -> str:
    """``scheme://user:password@host``, up to the last @, as clients read it, and whatever is in the
    password; a user may be a token."""
    urls, begin = found[0], 0
    while (begin := urls.find("://", begin)) >= 0:
        begin += 3
        if (first := _IN_LOGIN.search(urls, begin)) is None:
            break
        end = -1 if first[0] == ":" else urls.find("/", begin)
        at = urls.rfind("@", begin, len(urls) if end < 0 else end)
        if at >= 0:
            urls = urls[:begin] + _HIDDEN + urls[at:]
    return urls


def as_shown(value: Any) -> str:
    """What is shown of it: no secret, nothing that cannot be sent (bytes of a path, say, that are
    no text), and nothing that a terminal obeys."""
    return _CONTROLS.sub(_escaped, without_secrets(str(value)))


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
