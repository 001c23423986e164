"""Opens sockets, sees whether they are clean and alive, and counts what passes through them.

Must never be here: a pool, or a look-up other than that of a host it connects to.  Read
``factory.py`` first.
"""

from geventpool.sockets.factory import SocketFactory
from geventpool.sockets.liveness import close, fileno, is_socket, make_descriptor_probe, make_probe
from geventpool.sockets.monitored import MonitoredSocket, Traffic

__all__ = [
    "MonitoredSocket",
    "SocketFactory",
    "Traffic",
    "close",
    "fileno",
    "is_socket",
    "make_descriptor_probe",
    "make_probe",
]
