"""Opens sockets, sees whether they are clean and alive, and counts what passes through them.

Must never be here: a pool, or a look-up other than that of a host it connects to.  Read
``factory.py`` first.
"""

from geventpool.sockets.carriers import carriers, descriptors_in, fileno, is_socket
from geventpool.sockets.factory import SocketFactory
from geventpool.sockets.guard import Guard, GuardedSocket, guard
from geventpool.sockets.liveness import (
    CLOSED,
    CUT_SHORT,
    REPLACED,
    UNREAD,
    Probe,
    close,
    make_probe,
    watch,
)
from geventpool.sockets.monitored import MonitoredSocket, Traffic
from geventpool.sockets.start_tls import StartTLS

__all__ = [
    "CLOSED",
    "CUT_SHORT",
    "REPLACED",
    "UNREAD",
    "Guard",
    "GuardedSocket",
    "MonitoredSocket",
    "Probe",
    "SocketFactory",
    "StartTLS",
    "Traffic",
    "carriers",
    "close",
    "descriptors_in",
    "fileno",
    "guard",
    "is_socket",
    "make_probe",
    "watch",
]
