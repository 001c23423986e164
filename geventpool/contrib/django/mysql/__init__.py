"""Django's backend for MySQL and MariaDB, on a PyMySQLPool: see ``base.py``."""
