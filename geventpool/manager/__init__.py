"""From the name of a service to an open connection: names, the health of servers, and the pool.

Must never be here: how a name is looked up (``discovery``) or a socket opened (``sockets``), or
who gets which connection.  Read ``manager.py`` first.
"""

from geventpool.manager.balancing import Balance, ServerModelDirectory
from geventpool.manager.health import Attempt, ServerModel
from geventpool.manager.manager import ConnectionManager
from geventpool.manager.names import AddressGroupMap, ConnectInfo
from geventpool.manager.peak_ewma import PeakEwma
from geventpool.manager.policy import HealthPolicy
from geventpool.manager.subset import Subset

__all__ = [
    "AddressGroupMap",
    "Attempt",
    "Balance",
    "ConnectInfo",
    "ConnectionManager",
    "HealthPolicy",
    "PeakEwma",
    "ServerModel",
    "ServerModelDirectory",
    "Subset",
]
