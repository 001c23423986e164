"""Small tools that know nothing of pools: argument checks, a line in the log, errors, a heap.

Must never be here: gevent, or anything that one other folder alone needs.  Read any first.
"""
