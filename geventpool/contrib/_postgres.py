"""What an error of PostgreSQL's says of its connection, or of the server, whatever the driver."""

from __future__ import annotations

from geventpool.errors import Verdict

__all__ = ["verdict_of_refusal", "verdict_of_state"]

#: By SQLSTATE, or its class.
_VERDICTS = {
    "25006": Verdict.WRONG_SERVER,  # read_only_sql_transaction
    "53300": Verdict.SERVER_FULL,  # too_many_connections
    "28": Verdict.FATAL,  # invalid_authorization_specification
    "3D": Verdict.FATAL,  # invalid_catalog_name
}
_REFUSALS = {
    "too many clients already": Verdict.SERVER_FULL,
    "remaining connection slots are reserved": Verdict.SERVER_FULL,
    "too many connections for": Verdict.SERVER_FULL,
    "no more connections allowed": Verdict.SERVER_FULL,  # PgBouncer
    "authentication failed": Verdict.FATAL,
    "no password supplied": Verdict.FATAL,
    "no pg_hba.conf entry": Verdict.FATAL,
    "is not permitted to log in": Verdict.FATAL,
    '" does not exist': Verdict.FATAL,  # the role or the database
}


def verdict_of_state(sqlstate: str, severity: str | None) -> Verdict:
    """By what the server has said: its SQLSTATE, and its severity, not localized."""
    verdict = _VERDICTS.get(sqlstate) or _VERDICTS.get(sqlstate[:2])
    if verdict is not None:
        return verdict
    # The server ends a session of which it says FATAL or PANIC; after an ERROR it goes on.
    return Verdict.FINE if severity == "ERROR" else Verdict.BROKEN


def verdict_of_refusal(text: str) -> Verdict:
    """By the *text* of an error without SQLSTATE: of a refused login libpq keeps only that."""
    found = (verdict for words, verdict in _REFUSALS.items() if words in text)
    return next(found, Verdict.BROKEN)
