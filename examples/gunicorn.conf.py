"""gunicorn with gevent workers and a pool, with and without --preload."""

# First of all, in the master too: with --preload it is the master that imports the application, and
# a client library that is imported before the patching may block its worker for ever after.
# (The underscores: gunicorn takes what has a plain name here for a setting.)
from gevent import monkey as _monkey

_monkey.patch_all()

from geventpool.gunicorn import (  # noqa: F401
    child_exit,
    post_worker_init,  # fills the pools before the worker serves
    worker_exit,  # closes them as it ends
    worker_int,
)

worker_class = "gevent"
workers = 2
bind = "127.0.0.1:8000"
graceful_timeout = 5
