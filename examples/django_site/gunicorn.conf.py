"""gunicorn patches its gevent workers itself; with --preload, patch in the first line of this."""

from geventpool.gunicorn import child_exit, post_worker_init, worker_exit, worker_int  # noqa: F401

worker_class = "gevent"
workers = 2
