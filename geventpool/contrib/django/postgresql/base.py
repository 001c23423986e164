"""The backend ``geventpool.contrib.django.postgresql``: Django's own, on a PsycopgPool."""

from __future__ import annotations

from typing import Any, ClassVar

from django.core.exceptions import ImproperlyConfigured
from django.db.backends.postgresql import base
from django.db.backends.postgresql.psycopg_any import is_psycopg3
from psycopg.pq import TransactionStatus

from geventpool.contrib.django.wrapper import PooledWrapper, PoolFace
from geventpool.contrib.psycopg import PsycopgPool

__all__ = ["DatabaseWrapper"]


class DatabaseWrapper(PooledWrapper, base.DatabaseWrapper):  # type: ignore[misc]
    """A connection of Django's, by psycopg 3.

    ``OPTIONS["pool"]`` has the arguments of PsycopgPool, such as ``{"size": 10}``; without it they
    are the defaults; False: no pool.  With ``CONN_HEALTH_CHECKS`` each connection is asked for a
    sign of life before it is handed out.
    """

    _pools: ClassVar[dict[tuple[Any, ...], Any]] = {}

    def _make_pool(self, settings: dict[str, Any]) -> PsycopgPool:
        if not is_psycopg3:
            raise ImproperlyConfigured("geventpool.contrib.django.postgresql needs psycopg 3")
        if self.settings_dict["CONN_HEALTH_CHECKS"]:
            settings.setdefault("check", PsycopgPool.check_connection)
        kwargs = {**self.get_connection_params(), "autocommit": True}
        return DjangoPool(kwargs=kwargs, configure=self._configure_connection, **settings)

    def _is_cut_short(self) -> bool:
        found = self.connection.pgconn.transaction_status
        return bool(found == TransactionStatus.ACTIVE)


class DjangoPool(PoolFace, PsycopgPool):
    """A PsycopgPool, as Django asks for it."""
