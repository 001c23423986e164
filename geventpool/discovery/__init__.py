"""From a name to its addresses: by a mapping, by DNS (A and AAAA, or SRV), by a file.

Every resolver has ``resolve(name) -> AddressGroup`` and raises NameNotFound, with the name and what
was tried.  What is asked over the network is asked once for all callers, and kept:
``lookup_cache.py``.  Who tells when a name changes: ``watcher.py``.

Must never be here: connect to what was found, or block the hub.  Read ``static.py`` first, then
``lookup_cache.py`` and ``dns.py``.
"""

from geventpool.discovery.caching import CachingResolver
from geventpool.discovery.dns import DnsResolver
from geventpool.discovery.file import FileResolver
from geventpool.discovery.srv import SrvResolver
from geventpool.discovery.static import StaticResolver
from geventpool.discovery.watcher import PushingResolver, Subscription, Watcher

__all__ = [
    "CachingResolver",
    "DnsResolver",
    "FileResolver",
    "PushingResolver",
    "SrvResolver",
    "StaticResolver",
    "Subscription",
    "Watcher",
]
