"""Pools for the clients that people pool, one file a client: import the one you use.

    from geventpool.contrib.psycopg import PsycopgPool

Each is a subclass of a pool with its hooks filled in.  It uses public names and
``geventpool.pools.extension``, and imports no client but its own, which the extra of the same name
installs: ``pip install geventpool[psycopg]``.  Must never be here: an import of one of these files
by another, so that no program needs a client that it does not use; but ``sqlalchemy.py`` and
``django/``, which are faces for those libraries, build on what the file of their driver knows, and
the two drivers of PostgreSQL on what ``_postgres.py`` does.
Read ``psycopg.py`` first.
"""
