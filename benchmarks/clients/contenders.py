"""The pools that are compared, by name; ``databases.py`` and ``services.py`` make them."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.clients import databases, services
from benchmarks.clients.load import Ask

__all__ = ["CONTENDERS", "RIVALS"]

CONTENDERS: dict[str, Callable[[int], Ask]] = {
    "PsycopgPool": databases.psycopg_ours,
    "psycopg_pool": databases.psycopg_pool,
    "Psycopg2Pool": databases.psycopg2_ours,
    "DBUtils (psycopg2)": databases.psycopg2_dbutils,
    "PyMySQLPool": databases.pymysql_ours,
    "DBUtils (PyMySQL)": databases.pymysql_dbutils,
    "GeventPool (SQLAlchemy)": databases.sqlalchemy_ours,
    "QueuePool": databases.sqlalchemy_queue,
    "contrib.django": databases.django_ours,
    "Django's own": databases.django_own,
    "django-db-geventpool": databases.django_geventpool,
    "GeventConnectionPool": services.redis_ours,
    "BlockingConnectionPool": services.redis_blocking,
    "PymemcachePool": services.pymemcache_ours,
    "PooledClient": services.pymemcache_pooled,
    "HttpPool": services.http_ours,
    "GeventPoolManager": services.urllib3_ours,
    "urllib3": services.urllib3_own,
}

#: By client: ours, and those it is compared with.
RIVALS: dict[str, tuple[str, ...]] = {
    "psycopg": ("PsycopgPool", "psycopg_pool"),
    "psycopg2": ("Psycopg2Pool", "DBUtils (psycopg2)"),
    "PyMySQL": ("PyMySQLPool", "DBUtils (PyMySQL)"),
    "SQLAlchemy": ("GeventPool (SQLAlchemy)", "QueuePool"),
    "Django": ("contrib.django", "Django's own", "django-db-geventpool"),
    "redis": ("GeventConnectionPool", "BlockingConnectionPool"),
    "pymemcache": ("PymemcachePool", "PooledClient"),
    "HTTP": ("HttpPool", "urllib3"),
    "urllib3": ("GeventPoolManager", "urllib3"),
}
