"""Clients of the services by which processes agree: etcd and ZooKeeper.

What ``fleet`` and ``directory`` have in common: how to reach them, and nothing of what is kept
there.  Each is a file of its own, imported only by who uses it.
"""
