"""``gunicorn -c gunicorn.conf.py shop.wsgi``, with or without --preload."""

# First of all, in the master too: with --preload it is the master that imports the site.
# (The underscores: gunicorn takes what has a plain name here for a setting.)
from gevent import monkey as _monkey

_monkey.patch_all()

from geventpool.gunicorn import (  # noqa: F401
    child_exit,
    post_worker_init,
    worker_exit,
    worker_int,
)

worker_class = "gevent"
workers = 2
