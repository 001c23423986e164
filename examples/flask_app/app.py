"""A Flask application on PostgreSQL and Redis, for gunicorn's gevent workers.

    pip install geventpool[psycopg,redis] flask gunicorn
    cd examples/flask_app && gunicorn app:app        # --preload works as well
    curl http://127.0.0.1:8000/hello/anna

DATABASE_URL and REDIS_URL name the servers.  With POOL=peers it uses psycopg_pool and redis-py's
BlockingConnectionPool instead: `python -m benchmarks web` compares the two.
"""

import os

import gevent
import psycopg
import redis
from flask import Flask, request

from geventpool import Deadline, PoolUnavailable, observe

DATABASE_URL = os.environ.get("DATABASE_URL", "postgresql://postgres@127.0.0.1/postgres")
REDIS_URL = os.environ.get("REDIS_URL", "redis://127.0.0.1/0")
SIZE = 10  # of each pool, in each worker
WAIT = 5.0  # seconds that a request waits for a connection

# At module level, one of each per worker.  With --preload these lines run once, in the master, and
# each worker opens connections of its own.
if os.environ.get("POOL") == "peers":
    import psycopg_pool

    database = psycopg_pool.ConnectionPool(
        DATABASE_URL, min_size=SIZE, max_size=SIZE, timeout=WAIT, open=True
    )
    cache_pool = redis.BlockingConnectionPool.from_url(
        REDIS_URL, max_connections=SIZE, timeout=WAIT
    )
else:
    from geventpool.contrib.psycopg import PsycopgPool
    from geventpool.contrib.redis import GeventConnectionPool

    database = PsycopgPool(DATABASE_URL, SIZE, timeout=WAIT, name="database")
    cache_pool = GeventConnectionPool.from_url(REDIS_URL, size=SIZE, timeout=WAIT, name="cache")
cache = redis.Redis(connection_pool=cache_pool)

app = Flask(__name__)
# http://127.0.0.1:8000/-/pools/ shows the pools of all workers, to who asks from this machine.
app.wsgi_app = observe.mount(app.wsgi_app, "/-/pools")


@app.get("/hello/<name>")
def hello(name):
    """Say hello; the database takes ?seconds=0.1 for it, to see what that does."""
    try:
        with time_limit():
            return greet(name, request.args.get("seconds", 0.0, float))
    except gevent.Timeout as error:
        return {"error": str(error)}, 504


LONGEST = 10.0  # seconds


def time_limit():
    """Who asks may say in a header how long it will wait: nothing is done for nobody."""
    kind = gevent.Timeout if os.environ.get("LIMIT") == "timeout" else Deadline
    seconds = request.headers.get("X-Timeout", LONGEST, float)
    return kind(min(seconds, LONGEST) if seconds > 0 else LONGEST)  # (nan is not more than 0)


def greet(name, seconds):
    with database.connection() as conn:  # a transaction
        if seconds:
            conn.execute("select pg_sleep(%s)", (seconds,))
        (greeting,) = conn.execute("select 'hello, ' || %s", (name,)).fetchone()
    with cache.pipeline() as pipeline:
        greetings, echo = pipeline.incr("flask_app:greetings").echo(name).execute()
    return {
        "pid": os.getpid(),
        "greeting": greeting,  # by the database
        "name": echo.decode(),  # by the cache
        "greetings": greetings,
    }


# What a server or a pool cannot do now: tell the client at once, rather than let it wait, too.
@app.errorhandler(PoolUnavailable)
@app.errorhandler(psycopg.OperationalError)
@app.errorhandler(redis.ConnectionError)
def unavailable(error):
    return {"error": f"{type(error).__name__}: {error}"}, 503
