"""The command line of the demo."""

from __future__ import annotations

import argparse
import logging
import math
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import gevent
from gevent.event import Event
from gevent.pywsgi import WSGIServer

from geventpool import observe
from geventpool._compiled import COMPILED
from geventpool.demo.scenario import CONNECTIONS, GREENLETS, Demo
from geventpool.demo.screen import Screen
from geventpool.demo.server import SERVE, serve, why_no_echo

__all__ = ["main"]

PROGRAM = "python -m geventpool demo"


def main(words: Sequence[str], demo: type[Demo] = Demo) -> int:
    """Run the command line *words*; returns the exit status."""
    if words[:1] == [SERVE]:
        return serve(int(words[1]))
    parser = _parser()
    options = parser.parse_args(words)
    if options.host is not None and options.port is None:
        parser.error("--host needs a --port")
    address = None
    if options.port is not None:
        address = (options.host or "127.0.0.1", options.port)
        reason = why_no_echo(address)
        if reason:
            print(f"{PROGRAM}: {address[0]}:{address[1]}: {reason}", file=sys.stderr)
            return 2
    screen = Screen(sys.stdout, CONNECTIONS)
    try:
        with _page(screen) if options.page else nullcontext():
            return _show(demo(options.seconds, address), screen)
    except BrokenPipeError:  # as by "| head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description=f"{GREENLETS} greenlets share a pool of {CONNECTIONS} connections to an echo"
        " server, which is late at times, is killed half-way, and comes back.  Shows what the pool"
        " does meanwhile, and in the end whether it has kept its promises.",
        epilog="Exit status: 0 if every promise was kept, 1 if one was broken, 2 if there was"
        " nothing to talk to, 130 if you stopped it (by Ctrl-C, the table so far is shown).",
    )
    parser.add_argument(
        "--seconds", type=_duration, default=8.0, help="how long to go on (default: 8)"
    )
    parser.add_argument(
        "--host",
        help="use a server of yours, which must echo lines, instead; it is not stopped"
        " (default: 127.0.0.1 if there is a --port)",
    )
    parser.add_argument("--port", type=_port, help="the port of that server")
    parser.add_argument(
        "--page", action="store_true", help="have a status page meanwhile; says where"
    )
    return parser


def _duration(text: str) -> float:
    seconds = float(text)
    if not 1 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"at least 1, not {text}")
    return seconds


def _port(text: str) -> int:
    port = int(text)
    if not 0 < port < 65536:
        raise argparse.ArgumentTypeError(f"1 to 65535, not {text}")
    return port


@contextmanager
def _page(screen: Screen) -> Iterator[None]:
    """Serve the status page, for who is on this machine."""
    server: Any = WSGIServer(("127.0.0.1", 0), observe.app, log=None)
    server.start()
    screen.print(f"The status page: http://127.0.0.1:{server.server_port}/\n")
    try:
        yield
    finally:
        server.stop(timeout=1.0)
        observe.stop_listening()


def _show(demo: Demo, screen: Screen) -> int:
    """Run *demo* and print its table."""
    log = logging.getLogger("geventpool.pool.demo")
    log.addHandler(logging.NullHandler())
    log.propagate = False  # dials will fail, and the table says how many
    with _interrupts(demo.interrupted):
        demo.run(screen)
    screen.print()
    screen.print("geventpool, compiled" if COMPILED else "geventpool, all of it Python")
    verdicts = list(demo.verdicts())
    screen.table(verdicts)
    screen.print()
    broken = [verdict for verdict in verdicts if verdict.kept is False]
    for verdict in broken:
        screen.print(f"Broken: {verdict.complaint}")
    if demo.interrupted.is_set():
        screen.print("Stopped half-way; this is the table so far.")
    elif not broken:
        screen.print("Every promise was kept.")
    return 1 if broken else 128 + signal.SIGINT if demo.interrupted.is_set() else 0


@contextmanager
def _interrupts(interrupted: Event) -> Iterator[None]:
    """Have a Ctrl-C set *interrupted*, rather than raise in whichever greenlet runs just then."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = [gevent.signal_handler(number, interrupted.set) for number in numbers]
    before = [signal.getsignal(number) for number in numbers]
    try:
        yield
    finally:
        for handler in handlers:
            handler.cancel()
        for number, handle in zip(numbers, before, strict=True):
            signal.signal(number, handle)
