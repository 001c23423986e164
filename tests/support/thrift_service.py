"""The service of echo_servers.py, for clients; one of its methods is not there."""

import tempfile
from typing import Any

import thriftpy2

from support.echo_servers import THRIFT

__all__ = ["Echo", "Refused"]

with tempfile.NamedTemporaryFile("w", suffix=".thrift") as _file:
    _file.write(THRIFT.replace("void ping(),", "void ping(), void not_there(),"))
    _file.flush()
    _module: Any = thriftpy2.load(_file.name, module_name="echo_client_thrift")

Echo, Refused = _module.Echo, _module.Refused
