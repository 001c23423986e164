"""``help()`` shows what one has to know to write a pool: every hook, though its name is hidden."""

from __future__ import annotations

import inspect
import pydoc
import re

import pytest

from geventpool import ConnectionPool, EndpointPool
from geventpool.pools.base import BasePool

HOOKS = sorted(name for name in BasePool.__annotations__ if name.startswith("_"))


def shown(kind: type) -> str:
    return pydoc.render_doc(kind, renderer=pydoc.plaintext)


def test_there_are_hooks() -> None:
    assert {"_new_connection", "_keepalive", "_close_connection"} <= set(HOOKS)


@pytest.mark.parametrize("kind", [ConnectionPool, EndpointPool])
@pytest.mark.parametrize("hook", HOOKS)
def test_help_shows_each_hook_with_its_arguments(kind: type, hook: str) -> None:
    arguments = list(inspect.signature(getattr(kind, hook)).parameters)[1:]

    assert f"``{hook}({', '.join(arguments)})``" in shown(kind)


@pytest.mark.parametrize("hook", HOOKS)
def test_help_says_of_each_hook_when_where_whether_it_may_switch_what_bounds_it_and_what_if(
    hook: str,
) -> None:
    (text,) = re.findall(rf"- ``{hook}\(.*?(?=\n[ |]*- ``_|\n[ |]*\n)", shown(ConnectionPool), re.S)
    text = re.sub(r"[\s|]+", " ", text)

    assert re.search(r"Called in (a|the) .*(greenlet|caller's)", text)
    assert re.search(r"; (may|must not) switch; bounded by ", text)
    assert "What it raises" in text


def test_each_hook_has_a_docstring_of_its_own() -> None:
    for kind in (ConnectionPool, EndpointPool):
        assert [hook for hook in HOOKS if not getattr(kind, hook).__doc__] == []
