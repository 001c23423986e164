"""All public verbs of both pools and of the manager, called at random, and looked at meanwhile.

``server.py`` is what they connect to, ``chaos.py`` what goes wrong and what must hold,
``subjects.py`` the three kinds, ``callers.py`` what a caller does, ``rounds.py`` a crowd of them.
"""
