"""What the test suite of a program with pools needs: servers that fail on demand, and time.

* ``EchoServer``: sends back what it gets, counts its connections, goes away and comes back.
* ``ChaosProxy``: stands between a client and any server, and does to their connections what
  networks and servers do on bad days.
* ``closed_port()``: an address where nothing listens.
* ``no_retry_delays()``: ``@retry`` does not wait, and keeps its promises.
* ``FakeClock``: an hour that passes at once.

``geventpool.testing.fixtures`` has them as fixtures of pytest, and ``no_leaks``, which fails a test
that leaves a greenlet, a socket or an error of the hub behind.  Nothing here but that module
imports pytest.

All of it runs in the hub of the thread that made it, so it serves clients that are cooperative, or
in another process: a call that blocks the thread would block its server, too.
"""

from geventpool.testing.chaos import ChaosProxy
from geventpool.testing.clock import FakeClock, no_retry_delays
from geventpool.testing.echo import EchoServer
from geventpool.testing.ports import closed_port

__all__ = ["ChaosProxy", "EchoServer", "FakeClock", "closed_port", "no_retry_delays"]
