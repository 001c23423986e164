"""Does what the scheduler decides: greenlets, timers, hang-ups, forks, and the listeners.

Must never be here: a decision about who gets a connection, or how one is opened and looked at
(that is the pool's, which has the hooks).  Read ``runtime.py`` first.
"""
