"""See inside: what every pool of a process, and of its sister processes, looks like just now.

Must never be here: anything that a pool needs to do its work.  What is here reads public names, and
nothing of it is imported by ``import geventpool``.  Read ``snapshot.py`` first: all that is shown,
on a page, in a terminal or to a collector of metrics, is made from such a snapshot.
"""

from geventpool.observe.gathering import gather
from geventpool.observe.metrics import metrics_text
from geventpool.observe.snapshot import snapshot
from geventpool.observe.status_page import StatusPage, app, mount
from geventpool.observe.worker_socket import listen, stop_listening

__all__ = [
    "StatusPage",
    "app",
    "gather",
    "listen",
    "metrics_text",
    "mount",
    "snapshot",
    "stop_listening",
]
