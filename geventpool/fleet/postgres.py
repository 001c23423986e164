"""PostgresStore: the records of a fleet in the very database that it shares.

Needs no new infrastructure, and no driver of its own: it goes by a pool of yours.
"""

from __future__ import annotations

import uuid
from importlib.resources import files
from typing import Any

from geventpool.fleet.share import Grant, Report

__all__ = ["PostgresStore"]

_SCHEMA = files(__package__).joinpath("postgres.sql").read_text(encoding="utf-8")
_RENEW = (
    "select my_share, members, epoch, place from geventpool_fleet_renew("
    "%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
)
_RELEASE = "delete from geventpool_fleet_member where name = %s and id = %s"
_INSTALLED = "select to_regprocedure('geventpool_fleet_renew(text, text, integer, integer," + (
    " integer, integer, integer, integer, integer, double precision, integer, integer, text,"
    " integer)') is not null"
)


class PostgresStore:
    """The records of each cap in two tables of PostgreSQL; its clock is the server's.

    *pool* is a pool of connections to it, of psycopg or psycopg2: one of a single connection that
    is kept for this and is not under the cap, so that a full database does not keep anybody from
    giving back; the connection is put into autocommit.  Tables and function are made by
    ``install()``, by hand or at the first renewal, where the role may.

    A renewal is one statement: a process that is stopped in the middle holds no lock.
    """

    def __init__(self, pool: Any) -> None:
        if not callable(getattr(pool, "get", None)):
            raise TypeError(f"pool must be a pool of connections, not {pool!r}")
        self.pool = pool
        self._installed = False

    def install(self) -> None:
        """Make the tables and the function, if they are not there.

        Raises what the driver raises, if the role may not.  Blocks for some round trips.
        """
        with self.pool.get() as conn:
            if not _fetch(conn, _INSTALLED, ())[0]:
                # Two at a time would be in each other's way.
                lock = "select pg_advisory_xact_lock(7241170395)"
                _execute(conn, f"begin; {lock}; {_SCHEMA}; commit", ())
        self._installed = True

    def renew(self, report: Report) -> Grant:
        """See Store: one round trip.  Raises what the driver raises."""
        if not self._installed:
            self.install()
        given = (
            *(report.name, report.id, report.cap, report.used, report.has, report.needs),
            *(report.wants, report.weight, report.floor, report.lease, report.generation),
            *(report.number, uuid.uuid4().hex, report.place),
        )
        with self.pool.get() as conn:
            share, members, epoch, place = _fetch(conn, _RENEW, given)
        return Grant(share, members, epoch, place)

    def release(self, name: str, id: str) -> None:
        """See Store: as ``renew``."""
        with self.pool.get() as conn:
            _execute(conn, _RELEASE, (name, id))


def _execute(conn: Any, statement: str, given: tuple[object, ...]) -> Any:
    if not conn.autocommit:
        conn.autocommit = True
    cursor = conn.cursor()
    cursor.execute(statement, given or None)
    return cursor


def _fetch(conn: Any, statement: str, given: tuple[object, ...]) -> Any:
    return _execute(conn, statement, given).fetchone()
