"""More is asked of a pool than it can serve, for a while: how much does it serve, and how soon is
it back?

A pool has 10 connections to a server whose answers take 20 ms on average, so 500 a second can be
served.  Each caller has 1 s for the wait and the answer together (a ``gevent.Timeout(1)``, the
ordinary web worker), and comes whether others were answered or not.  0.8 times what can be served
is asked at first, then more (or the server slows down), then 0.8 times again.

In virtual time (``benchmarks/virtual_time.py``) this is the whole pool on a clock that jumps, so
that a case takes a second or two; on real sockets it is 30 s a pool, and other libraries' pools
take their turn.

Read ``scenario.py`` first, then ``bars.py``.
"""
