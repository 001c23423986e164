"""A Django site on a pool of connections: ``python manage.py migrate``, ``test``, ``runserver``.

To serve it: ``gunicorn -c gunicorn.conf.py shop.wsgi``, in this folder.
"""

from gevent import monkey

monkey.patch_all()  # before anything else is imported

import os
import sys

from django.core.management import execute_from_command_line

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
    execute_from_command_line(sys.argv)
