"""Two gevent workers; ``gunicorn app:app`` in this folder finds it by itself."""

# First of all: with --preload it is the master that imports the application, and psycopg may block
# for ever after if it is imported before the patching.
# (The underscores: gunicorn takes what has a plain name here for a setting.)
from gevent import monkey as _monkey

_monkey.patch_all()

from geventpool.gunicorn import child_exit, post_worker_init, worker_exit, worker_int  # noqa: F401

worker_class = "gevent"
workers = 2
bind = "127.0.0.1:8000"
timeout = 30  # a worker whose hub stands still for so long is killed
graceful_timeout = 15  # more than a request may take, see time_limit() in app.py
