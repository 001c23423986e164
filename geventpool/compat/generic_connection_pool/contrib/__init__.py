"""Managers of sockets and of streams."""
