"""Clients of real servers: this library's pool for each, and the pool it is used with today.

Start at ``bars.py``.  ``contenders.py``: the pools; ``load.py``: what a process asks of one.
"""
