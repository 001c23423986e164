"""What ``geventpool.manager`` knows of servers, under the name of the module that it once was."""

from geventpool.manager import (
    Attempt,
    Balance,
    HealthPolicy,
    PeakEwma,
    ServerModel,
    ServerModelDirectory,
)

__all__ = ["Attempt", "Balance", "HealthPolicy", "PeakEwma", "ServerModel", "ServerModelDirectory"]
