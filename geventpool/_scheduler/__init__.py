"""Decides who gets which connection next, and what is dialed, checked and closed.

Must never be here: a clock, gevent, I/O, a call of user code; time is passed in, and what it wants
done it asks of its effects.

Read ``state.py`` and ``model.py`` first, then ``arbiter.py``: who gets what.  ``ledger.py`` alone
changes states and counts, ``verbs.py`` is what callers and the runtime say, and ``scheduler.py``
takes that one at a time, with an ``audit.py`` for what is cut short.
"""
