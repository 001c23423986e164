"""What a gunicorn worker does with its pools: fills them before it serves, closes them as it goes.

In ``gunicorn.conf.py``, with the gevent worker, these two lines are all it takes::

    worker_class = "gevent"
    from geventpool.gunicorn import child_exit, post_worker_init, worker_exit, worker_int

A configuration that has a hook of its own calls the one of here from it.  All pools and managers of
the worker's hub are meant, wherever they were made: see ``geventpool.pools``.  Nothing here raises:
what goes wrong is on gunicorn's own log, or on the pool's.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import gevent

from geventpool import observe
from geventpool.errors import WrongHub
from geventpool.registry import pools

__all__ = ["child_exit", "post_worker_init", "worker_exit", "worker_int"]

#: A worker that is silent for gunicorn's *timeout* is killed, and so is one that takes longer than
#: *graceful_timeout* to end: of either, filling and closing take this share at most.
_SHARE = 0.5
_LONGEST_FILL = 10.0  # seconds
#: As a worker exits, its requests have ended or were killed: what is held by then is held by none.
_LAST_CLOSE = 1.0  # seconds


def post_worker_init(worker: Any) -> None:
    """Fill the pools before the worker serves its first request, and let them be looked at from
    outside: by ``python -m geventpool dump PID``, and the page that another worker serves.

    Each is filled to its minimum, all at the same time.  Blocks for at most 10 s and half of
    gunicorn's *timeout*; a pool that is not full by then is named in a warning, and the worker
    serves all the same: its callers wait, or are told what is wrong.
    """
    patience = min(_LONGEST_FILL, (worker.cfg.timeout or _LONGEST_FILL) * _SHARE)

    def fill(pool: Any) -> None:
        try:
            _fill(pool, patience)
        except WrongHub:
            return  # another thread's
        except Exception as error:
            worker.log.warning("pool %r is not full as the worker begins: %s", pool.name, error)

    gevent.joinall([gevent.spawn(fill, pool) for pool in pools()])
    try:
        observe.listen(group=os.getppid())
    except OSError as error:
        worker.log.warning("the pools cannot be looked at from outside: %s", error)


def worker_int(worker: Any) -> None:
    """At SIGINT or SIGQUIT: callers in line are sent away, and requests that hold a connection may
    finish, for half of *graceful_timeout* at most.  Then the connections are closed."""
    _close(worker, worker.cfg.graceful_timeout * _SHARE)


def worker_exit(server: Any, worker: Any) -> None:
    """Close the pools as the worker ends, within a second, remove what it has announced in a
    directory, and give back its share of every FleetLimit.

    gunicorn calls this in its master, too, for a worker that it did not find, and not at all for
    one that is killed: then nothing is done, and the system closes what the worker had open.
    """
    if worker.pid == os.getpid():
        observe.stop_listening()
        announced: Any = sys.modules.get("geventpool.directory.registration")
        if announced is not None:
            announced.close_all()  # before connections are refused
        _close(worker, min(_LAST_CLOSE, worker.cfg.graceful_timeout * _SHARE))
        fleet: Any = sys.modules.get("geventpool.fleet.limit")
        if fleet is not None:
            fleet.release_all()


def child_exit(server: Any, worker: Any) -> None:
    """In the master, once a worker has ended: its gauges leave the metrics, where prometheus_client
    gathers those of several processes (``PROMETHEUS_MULTIPROC_DIR``)."""
    multiprocess: Any = sys.modules.get("prometheus_client.multiprocess")
    if multiprocess is not None and "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        multiprocess.mark_process_dead(worker.pid)


def _fill(pool: Any, timeout: float) -> None:
    if hasattr(pool, "fill"):
        stats = pool.stats()
        if stats.min_size == stats.size:
            pool.fill(timeout)
        elif stats.min_size:
            pool._prefill(stats.min_size, timeout)


def _close(worker: Any, timeout: float) -> None:
    def close(pool: Any) -> None:
        try:
            pool.close(timeout)
        except WrongHub:
            return
        except Exception as error:
            worker.log.warning("pool %r was not closed: %r", pool.name, error)

    gevent.joinall([gevent.spawn(close, pool) for pool in pools()])
