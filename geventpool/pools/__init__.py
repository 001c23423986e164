"""What a program holds: a pool of connections to one place, and one of connections to many.

Must never be here: names, look-ups and the health of servers, which are the manager's.  Read
``base.py`` first for what all pools have in common, ``lease.py`` for the way of a connection that
is idle, and ``extension.py`` before you write a pool with another face.

Called, as ``geventpool.pools()``, it tells which pools there are: see ``geventpool.registry``.
"""

from geventpool._scheduler.limit import Limit
from geventpool.pools.connection_pool import ConnectionPool
from geventpool.pools.endpoint_pool import EndpointPool
from geventpool.pools.leases import Lease

__all__ = ["ConnectionPool", "EndpointPool", "Lease", "Limit"]
