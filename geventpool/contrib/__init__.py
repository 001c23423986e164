"""Pools for the clients that people pool, one file a client: import the one you use.

    from geventpool.contrib.psycopg import PsycopgPool

Each is a subclass of a pool with its hooks filled in.  It uses public names and
``geventpool.pools.extension``, and imports no client but its own, which the extra of the same name
installs: ``pip install geventpool[psycopg]``.  Must never be here: what two of them would share.
``sqlalchemy.py`` and ``django/`` are faces for those libraries, on top of what a client's own file
knows of it.  Read ``psycopg.py`` first.
"""
