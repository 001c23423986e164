"""Backends for Django's databases, by the paths that Django looks for them at.

    DATABASES = {
        "default": {
            "ENGINE": "geventpool.contrib.django.postgresql",  # or ...django.mysql
            "NAME": "shop",
            "OPTIONS": {"pool": {"size": 10}},
        }
    }

``wrapper.py`` has what both share; each backend's ``base.py`` is Django's own, with a pool of the
client's from geventpool.contrib beneath.  Must never be here: what Django's backends do by
themselves.
"""
