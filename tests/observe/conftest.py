"""Here each test sees the pools that it has made, and none that another test has left."""

from __future__ import annotations

from weakref import WeakValueDictionary

import pytest

from geventpool import registry


@pytest.fixture(autouse=True)
def no_other_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_known", WeakValueDictionary())
