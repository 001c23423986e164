"""One cap over many processes and machines, leased from a store that they all reach.

Must never be here: a look at the store on the way of a caller to its connection.  Read ``share.py``
first, which decides who gets how much; ``limit.py`` has the greenlet that renews; each store is a
file of its own, imported only by who uses it.
"""

from geventpool.fleet.limit import FleetLimit, FleetStats
from geventpool.fleet.stores import MemoryStore, Store

__all__ = ["FleetLimit", "FleetStats", "MemoryStore", "Store"]
