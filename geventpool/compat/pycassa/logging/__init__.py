"""The listeners that pycassa has for use: one that logs, and one that counts."""
