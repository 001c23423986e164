"""gunicorn with gevent workers and a pool, with and without --preload."""

# First of all, in the master too: with --preload it is the master that imports the application, and
# a client library that is imported before the patching may block its worker for ever after.
# (The underscores: gunicorn takes what has a plain name here for a setting.)
from gevent import monkey as _monkey

_monkey.patch_all()

import os as _os  # noqa: E402
import sys as _sys  # noqa: E402

worker_class = "gevent"
workers = 2
bind = "127.0.0.1:8000"
graceful_timeout = 5


def worker_exit(server, worker):
    """Close the pool when a worker goes.

    gunicorn may call this in the master, too, for a worker that it did not find.  And it does not
    call it at all for a worker that is killed; then the system closes what the worker had open.
    """
    application = _sys.modules.get("gunicorn_app")
    if application is not None and worker.pid == _os.getpid():
        application.pool.close(timeout=1.0)
