import gevent
from django.db import OperationalError, connection, transaction
from django.http import JsonResponse

from geventpool import PoolUnavailable
from shop.models import Visit


def visit(request, who):
    """Count a visit; each greenlet has a connection of the pool until its request ends."""
    with transaction.atomic():
        Visit.objects.create(who=who)
        visits = Visit.objects.filter(who=who).count()
    return JsonResponse({"who": who, "visits": visits})


def slow(request, seconds):
    """Ask the database for something that takes long, for at most 0.1 s."""
    wait = "pg_sleep" if connection.vendor == "postgresql" else "sleep"
    try:
        with gevent.Timeout(0.1), transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(f"select {wait}(%s)", (float(seconds),))
    except gevent.Timeout:
        return JsonResponse({"error": "it took too long"}, status=504)
    return JsonResponse({"slept": seconds})


def pool(request):
    """How the pool of this worker stands."""
    stats = connection.pool.stats()
    return JsonResponse({"in_use": stats.in_use, "idle": stats.idle, "opened": stats.opened})


class Unavailable:
    """A middleware: 503 when there is no connection to be had."""

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        return self.get_response(request)

    def process_exception(self, request, error):
        if isinstance(error, OperationalError) and isinstance(error.__cause__, PoolUnavailable):
            return JsonResponse({"error": str(error)}, status=503)
        return None
