"""Django's backend for PostgreSQL, on a PsycopgPool: see ``base.py``."""
