"""The adapters of geventpool.contrib, described for the contract: see support/contract.py."""

from __future__ import annotations

from support.adapters.django import BACKENDS
from support.adapters.http import Http
from support.adapters.memcached import Pymemcache
from support.adapters.mysql import PyMySQL
from support.adapters.postgres import Psycopg, Psycopg2
from support.adapters.rabbitmq import Pika
from support.adapters.redis import Redis
from support.adapters.small import Imap, Ldap3, Smtp, Thrift, WebSocket
from support.adapters.sqlalchemy import ENGINES
from support.contract import Adapter

__all__ = ["ADAPTERS"]

ADAPTERS: list[Adapter] = [
    *(Psycopg(), Psycopg2(), PyMySQL(), *ENGINES, *BACKENDS),
    *(Redis(), Pymemcache(), Http()),
    *(Pika(), Imap(), Smtp(), Ldap3(), Thrift(), WebSocket()),
]
