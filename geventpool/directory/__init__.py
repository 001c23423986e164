"""Names in a directory (ZooKeeper, etcd, ...), which tells by itself when their servers change.

Each directory is a file of its own, imported only by who uses it.  Must never be here: a question
to a directory on the way of a caller to its connection, but for the first time that a name is asked
for.  Read ``source.py`` first, what a directory must do, then ``watching.py``, which all resolvers
of here are built on; ``roster.py`` says which servers of a service are given out, and how long.
"""

from geventpool.directory.source import Source
from geventpool.directory.watching import WatchingResolver

__all__ = ["Source", "WatchingResolver"]
