from django.db import models


class Visit(models.Model):
    who = models.CharField(max_length=100)
    at = models.DateTimeField(auto_now_add=True)
