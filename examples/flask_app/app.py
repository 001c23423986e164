"""A Flask application on PostgreSQL, for gunicorn's gevent workers.

    pip install geventpool[psycopg] flask gunicorn
    cd examples/flask_app && gunicorn app:app        # --preload works as well
    curl http://127.0.0.1:8000/hello/anna

DATABASE_URL names the server.  With POOL=peers it uses psycopg_pool instead: `python -m benchmarks
web` compares the two.
"""

import os

import gevent
import psycopg
from flask import Flask, request

from geventpool import Deadline, PoolUnavailable

DATABASE_URL = os.environ.get("DATABASE_URL", "postgresql://postgres@127.0.0.1/postgres")
SIZE = 10  # of the pool, in each worker
WAIT = 5.0  # seconds that a request waits for a connection

# At module level, one per worker.  With --preload these lines run once, in the master, and
# each worker opens connections of its own.
if os.environ.get("POOL") == "peers":
    import psycopg_pool

    database = psycopg_pool.ConnectionPool(
        DATABASE_URL, min_size=SIZE, max_size=SIZE, timeout=WAIT, open=True
    )
else:
    from geventpool.contrib.psycopg import PsycopgPool

    database = PsycopgPool(DATABASE_URL, SIZE, timeout=WAIT, name="database")

app = Flask(__name__)


@app.get("/hello/<name>")
def hello(name):
    """Say hello; the database takes ?seconds=0.1 for it, to see what that does."""
    try:
        with time_limit():
            return greet(name, request.args.get("seconds", 0.0, float))
    except gevent.Timeout as error:
        return {"error": str(error)}, 504


def time_limit():
    """Who asks may say in a header how long it will wait: nothing is done for nobody."""
    kind = gevent.Timeout if os.environ.get("LIMIT") == "timeout" else Deadline
    return kind(request.headers.get("X-Timeout", 10.0, float))


def greet(name, seconds):
    with database.connection() as conn:  # a transaction
        if seconds:
            conn.execute("select pg_sleep(%s)", (seconds,))
        (greeting,) = conn.execute("select 'hello, ' || %s", (name,)).fetchone()
    return {"pid": os.getpid(), "greeting": greeting}


# What the server or the pool cannot do now: tell the client at once, rather than let it wait, too.
@app.errorhandler(PoolUnavailable)
@app.errorhandler(psycopg.OperationalError)
def unavailable(error):
    return {"error": f"{type(error).__name__}: {error}"}, 503
