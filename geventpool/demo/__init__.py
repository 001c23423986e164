"""``python -m geventpool demo``: a pool under load, and what became of its promises.

Must never be here: anything of the pool that its users do not have.  Read ``scenario.py`` first.
"""

from geventpool.demo.cli import main
from geventpool.demo.scenario import Demo

__all__ = ["Demo", "main"]
