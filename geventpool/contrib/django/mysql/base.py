"""The backend ``geventpool.contrib.django.mysql``: Django's own, on a PyMySQLPool.

Django's imports MySQLdb: PyMySQL takes its place, as by ``pymysql.install_as_MySQLdb()``, which may
be called before, or not.
"""

from __future__ import annotations

import sys
from typing import Any, ClassVar

import pymysql
from django.core.exceptions import ImproperlyConfigured
from django.utils.functional import cached_property

from geventpool.contrib.django.wrapper import PooledWrapper, PoolFace
from geventpool.contrib.pymysql import PyMySQLPool

if sys.modules.get("MySQLdb", pymysql) is not pymysql:
    raise ImproperlyConfigured(
        "MySQLdb (mysqlclient) was imported before geventpool.contrib.django.mysql: it waits in C"
        " and stops gevent's hub.  Let no other backend for MySQL be used beside this one, or call"
        " pymysql.install_as_MySQLdb() at the top of the settings"
    )
pymysql.install_as_MySQLdb()
# Its modules, too: else there would be a second MySQLdb.err, which becomes pymysql.err as it is
# imported, and whose errors are not those that PyMySQL raises.
for _name, _module in list(sys.modules.items()):
    if _name.startswith("pymysql."):
        sys.modules.setdefault(_name.replace("pymysql", "MySQLdb", 1), _module)

from django.db.backends.base.base import BaseDatabaseWrapper  # noqa: E402
from django.db.backends.mysql import base  # noqa: E402

__all__ = ["DatabaseWrapper"]


class DatabaseWrapper(PooledWrapper, base.DatabaseWrapper):  # type: ignore[misc]
    """A connection of Django's, by PyMySQL.

    ``OPTIONS["pool"]`` has the settings of ConnectionPool and the arguments *configure* and
    *reset_session* of PyMySQLPool, such as ``{"size": 10}``; without it they are the defaults;
    False: no pool.  The other OPTIONS are those of ``pymysql.connect``, and *isolation_level*.
    """

    _pools: ClassVar[dict[tuple[Any, ...], Any]] = {}

    def _make_pool(self, settings: dict[str, Any]) -> PyMySQLPool:
        if self.settings_dict["CONN_HEALTH_CHECKS"]:
            settings.setdefault("check_after", 0.0)
        configure = settings.pop("configure", None)
        isolation = self._isolation_level()

        def set_up(conn: Any) -> None:
            with conn.cursor() as cursor:
                cursor.execute("set sql_auto_is_null = 0")
                if isolation:
                    cursor.execute(f"set session transaction isolation level {isolation}")
            if configure is not None:
                configure(conn)

        arguments = {"autocommit": True, **self.get_connection_params()}
        return DjangoPool(configure=set_up, **{**arguments, **settings})

    def _isolation_level(self) -> str | None:
        self.get_connection_params()  # which reads it from OPTIONS
        found: str | None = self.isolation_level
        return found

    def _is_cut_short(self) -> bool:
        return not self.connection.open

    def get_connection_params(self) -> dict[str, Any]:
        params: dict[str, Any] = super().get_connection_params()
        params.pop("pool", None)
        return params

    def _obtain(self, conn_params: dict[str, Any]) -> Any:
        pool = self.pool
        return super()._obtain(conn_params) if pool is None else pool.getconn()

    def init_connection_state(self) -> None:
        if self.pool is None:
            super().init_connection_state()
        else:  # the rest was done as it was dialed
            BaseDatabaseWrapper.init_connection_state(self)

    @cached_property  # type: ignore[untyped-decorator]
    def mysql_server_data(self) -> dict[str, Any]:
        pool = self.pool
        found: dict[str, Any] | None = None if pool is None else pool.server_data
        if found is None:
            found = dict(base.DatabaseWrapper.mysql_server_data.func(self))
            if pool is not None:
                pool.server_data = found
        return found

    def is_usable(self) -> bool:
        try:
            self.connection.ping(reconnect=False)
        except pymysql.Error:
            return False
        return True


class DjangoPool(PoolFace, PyMySQLPool):
    """A PyMySQLPool, as Django asks for it."""

    #: What Django asks the server about itself, once for all greenlets.
    server_data: dict[str, Any] | None = None
