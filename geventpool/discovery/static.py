"""Names that the program knows.  Must never be done here: ask anybody else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from geventpool._util.arguments import check_text
from geventpool.addresses import AddressGroup, address
from geventpool.discovery.messages import listed, not_found

__all__ = ["StaticResolver"]


class StaticResolver:
    """Names that the program knows.

    *groups* maps a name to an AddressGroup, or to the tiers of one.  *aliases* maps a name to
    another name (of either kind) or to one address, in any spelling that ``addresses.address``
    takes; an alias goes before a group of the same name.  Both are read once.

    Raises ValueError for aliases that go round in a circle or lead nowhere.
    """

    _is_own = True

    def __init__(
        self,
        groups: Mapping[str, Any],
        aliases: Mapping[str, Any] | None = None,
    ) -> None:
        self._groups = {
            name: group if isinstance(group, AddressGroup) else AddressGroup(group)
            for name, group in groups.items()
        }
        aliases = {} if aliases is None else aliases
        found = {name: self._follow(name, aliases) for name in aliases}
        self._tried = (listed("groups", self._groups), listed("aliases", aliases))
        self._groups |= found

    def resolve(self, name: str, /) -> AddressGroup:
        """The addresses of *name*.  Raises NameNotFound if it is neither a group nor an alias."""
        check_text("name", name)
        group = self._groups.get(name)
        if group is None:
            raise not_found(name, "it is not one of the names given", self._tried)
        return group

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {len(self._groups)} names>"

    def _follow(self, alias: str, aliases: Mapping[str, Any]) -> AddressGroup:
        """The addresses at the end of the chain that begins with *alias*."""
        chain = [alias]
        while True:
            target = aliases[chain[-1]]
            chain.append(target)
            text = " -> ".join(map(str, chain))
            if isinstance(target, str) and target in chain[:-1]:
                raise ValueError(f"aliases go round in a circle: {text}")
            if isinstance(target, str) and target in aliases:
                continue
            if isinstance(target, str) and target in self._groups:
                return self._groups[target]
            try:
                return AddressGroup.of(address(target))
            except (TypeError, ValueError) as error:
                raise ValueError(f"aliases lead nowhere: {text}: {error}") from error
