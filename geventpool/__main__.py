"""``python -m geventpool demo``: a pool under load, and what became of its promises.

Open it at ``Demo._request``, which is what a program of yours would do, and ``Demo._direct``, which
makes life hard for it.  What is counted meanwhile is judged in ``Demo.verdicts``.

The echo server of the demo is a process of its own.  It lives for as long as its standard input is
open, so it goes when the demo goes, however that one ends.
"""

from __future__ import annotations

import argparse
import errno
import itertools
import logging
import math
import os
import random
import shutil
import signal
import statistics
import sys
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any, TextIO

import gevent
from gevent import socket, subprocess
from gevent.event import Event
from gevent.server import StreamServer

from geventpool.errors import PoolError
from geventpool.events import PoolStats
from geventpool.pools import ConnectionPool
from geventpool.sockets import SocketFactory

__all__ = ["Demo", "Verdict", "main"]

PROGRAM = "python -m geventpool"
SERVE = "_serve"  # the hidden command of the server's process

CONNECTIONS = 20
GREENLETS = 100
LATE_SHARE = 0.01  # of the replies of the demo's own server come late ...
LATE_BY = 0.3  # ... by so many seconds ...
MAX_WAIT = 0.1  # ... and no caller waits for one longer than this
MAX_WAIT_ELSEWHERE = 2.0  # with a server of the user's
SHORT_WAIT_SHARE = 0.02  # of the requests are given up wherever they are, in line too ...
SHORT_WAIT = 0.02  # ... at a random moment within so many seconds

# The promises that have a figure.
MOST_DIALS, MOST_DIALS_PER_SECOND = 6, 2  # 12 in 3 s: the pauses grow to 0.5 to 1 s
RECOVERY = 1.2  # seconds from the server's return to the first reply ...
EVERYBODY = 0.3  # ... and from there to the last greenlet's
SLOWEST = 5  # times the median wait

TICK = 0.1


class Demo:
    """One run of the demo, against the server at *address*; None: one of its own."""

    def __init__(self, seconds: float, address: tuple[str, int] | None = None) -> None:
        self.seconds = seconds
        self.address = address or ("127.0.0.1", 0)
        self.server = _Server() if address is None else None
        self.max_wait = MAX_WAIT if address is None else MAX_WAIT_ELSEWHERE
        self.away = min(2.8, 0.35 * seconds)  # to which comes what the server takes to start
        self.pool: ConnectionPool[Any]
        self.workers: list[gevent.Greenlet[..., Any]] = []
        self.state = "opening"
        self.interrupted = Event()
        self.began_at = self.ended_at = monotonic()

        # What became of the requests.
        self.numbers = itertools.count(1)
        self.answered = self.wrong = self.cut_short = self.late = self.left_the_line = 0
        self.refusals: list[PoolError] = []
        # How long they waited.  Compared are those of a calm time: it has a number, 0 is no such.
        self.calm = 0
        self.calm_since = 0.0
        self.waits = array("d")
        self.in_line: dict[int, float] = {}  # who is -> since when
        self.longest_hold = 0.0
        self.lag = 0.0  # by how much this process was late at worst, as the machine was busy
        # The outage.
        self.died_at = self.back_at = self.first_reply_at = self.last_reply_at = math.inf
        self.failed_before = self.failed_dials = self.opened_in_vain = 0
        self.unserved: set[int] = set()
        self.everybody_served = Event()
        # The end.
        self.remains: PoolStats | None = None

    def make_pool(self) -> ConnectionPool[Any]:
        """The pool that is put to the test."""
        return ConnectionPool(CONNECTIONS, connect=SocketFactory(self.address), name="demo")

    def run(self, screen: _Screen) -> None:
        """Run to the end, or until the user has enough; leave no process and no connection."""
        try:
            if self.server is not None:
                self.address = self.server.start()
            screen.print(self._plan())
            self.pool = self.make_pool()
            try:
                self._watch(screen)
                self._look_at_the_remains()
            finally:
                gevent.killall(self.workers, timeout=5.0)
                self.pool.close(timeout=2.0)
        finally:
            if self.server is not None:
                self.server.stop()

    def _watch(self, screen: _Screen) -> None:
        """Keep the live line going while the director is at work."""
        director = gevent.spawn(self._direct)
        try:
            rate = _Rate()
            while not director.ready() and not self.interrupted.is_set():
                screen.live(self._line(rate(self.answered), screen))
                due = monotonic() + TICK
                ends: list[Any] = [director, self.interrupted]
                gevent.wait(ends, TICK, count=1)
                self.lag = max(self.lag, monotonic() - due)
        finally:
            screen.end_live()
            director.kill()
            self._end_calm()
            self.ended_at = monotonic()
            gevent.killall(self.workers, timeout=5.0)  # wherever they are: in line, in a request
        error = director.exception
        if isinstance(error, PoolError):
            self.refusals.append(error)
        elif error is not None:
            raise error

    # What each of the greenlets does

    def _work(self, me: int) -> None:
        while True:
            self._request(me)

    def _request(self, me: int) -> None:
        """Send a number that was not sent before: the reply must be that number."""
        request = b"%d\n" % next(self.numbers)
        max_wait = SHORT_WAIT * random.random() if random.random() < SHORT_WAIT_SHARE else None
        calm, asked_at, served_at = self.calm, monotonic(), math.inf
        self.in_line[me] = asked_at
        try:
            with gevent.Timeout(max_wait), self.pool.get() as sock:
                served_at = monotonic()
                del self.in_line[me]
                with gevent.Timeout(self.max_wait):
                    reply = _exchange(sock, request)
        except gevent.Timeout:
            if served_at < math.inf:
                self.late += 1
            else:
                self.left_the_line += 1
        except PoolError as error:
            self.refusals.append(error)
            gevent.sleep(TICK)
        except OSError:
            self.cut_short += 1
        else:
            self.answered += 1
            self.wrong += reply != request
            if self.unserved and served_at >= self.died_at:
                self._note_served(me)
        finally:
            self.in_line.pop(me, None)
        if calm and calm == self.calm and served_at < math.inf:
            self.waits.append(served_at - asked_at)
            self.longest_hold = max(self.longest_hold, monotonic() - served_at)

    def _note_served(self, me: int) -> None:
        """One more has had a reply from the server that came back."""
        self.last_reply_at = monotonic()
        self.first_reply_at = min(self.first_reply_at, self.last_reply_at)
        self.unserved.discard(me)
        if not self.unserved:
            self.everybody_served.set()

    # What happens to them

    def _direct(self) -> None:
        self.pool.fill(timeout=10.0)
        self.began_at = monotonic()
        self.workers = [gevent.spawn(self._work, number) for number in range(GREENLETS)]
        self._begin_calm(1)
        if self.server is None:
            gevent.sleep(self.seconds)
        else:
            gevent.sleep((self.seconds - self.away) / 2)
            self._take_away(self.server)
            self._begin_calm(2)
            gevent.sleep((self.seconds - self.away) / 2)

    def _take_away(self, server: _Server) -> None:
        """Kill the server, start it again after a while, and wait until everybody is served."""
        self._end_calm()
        self.state = "outage"
        opened = self.pool.stats().opened
        server.stop()
        self.died_at = monotonic()
        dead = self.pool.stats()
        self.opened_in_vain = dead.opened - opened  # dying, its backlog still took connections
        # Those under way as it died, a burst of them perhaps, were begun before it was away.
        self.failed_before = dead.dial_failed + dead.connecting
        self.unserved = set(range(GREENLETS))
        gevent.sleep(self.away)
        server.start(self.address[1])
        self.back_at = server.listens_since
        self.everybody_served.wait(timeout=10.0)

    def _begin_calm(self, number: int) -> None:
        self.calm, self.calm_since = number, monotonic()
        self.state = ""

    def _end_calm(self) -> None:
        if self.calm and self.in_line:  # a caller may have waited all the time
            first = min(self.in_line.values())
            self.waits.append(monotonic() - max(first, self.calm_since))
        self.calm = 0

    def _look_at_the_remains(self) -> None:
        """All greenlets have been killed: the pool must be what it was before they came."""
        if self.died_at < math.inf:
            failed = self.pool.stats().dial_failed - self.failed_before
            self.failed_dials = max(0, failed)
        if self._is_server_there():
            try:
                self.pool.fill(timeout=10.0)
            except PoolError:
                pass  # the figures tell
        self.remains = self.pool.stats()

    def _is_server_there(self) -> bool:
        return self.died_at == math.inf or self.back_at < math.inf

    # What there is to see

    def _plan(self) -> str:
        host, port = self.address
        text = (
            f"{GREENLETS} greenlets share {CONNECTIONS} connections to {host}:{port}"
            f" for {self.seconds:g} s.\nSome requests are given up at a random moment"
        )
        if self.server is None:
            return f"{text}.\n"
        return (
            f"{text}, and some because the reply is late.\n"
            f"Half-way the server is killed, and started again {self.away:.1f} s later.\n"
        )

    def _line(self, rate: float, screen: _Screen) -> str:
        stats = self.pool.stats()
        bar = screen.bar(stats.in_use, stats.idle, stats.connecting)
        ran = monotonic() - self.began_at if self.workers else 0.0
        return (
            f"{ran:4.1f} s {rate:6,.0f} requests/s  {bar}{stats.in_use:2} in use"
            f" {stats.idle:2} idle {stats.connecting:2} connecting {stats.waiting:3} waiting"
            f"  {self.state}"
        ).rstrip()

    def verdicts(self) -> Iterator[Verdict]:
        """The rows of the table: what there is to count, and what became of each promise."""
        ran = self.ended_at - self.began_at
        if self.died_at < math.inf:
            ran -= min(self.first_reply_at, self.ended_at) - self.died_at
        yield Verdict(
            "requests answered",
            f"{self.answered:,}",
            f"{self.answered / ran:,.0f} a second" if self.workers else "",
            kept=None if self.answered or self.interrupted.is_set() else False,
            complaint="No request was ever answered.",
        )
        yield Verdict(
            "given up by gevent.Timeout",
            f"{self.late + self.left_the_line:,}",
            f"{self.late:,} with the reply due, {self.left_the_line:,} in line",
        )
        yield Verdict(
            "wrong replies",
            f"{self.wrong:,}",
            "must be 0",
            kept=not self.wrong,
            complaint=f"{self.wrong:,} requests were given the reply to another request.",
        )
        if self.server is not None:
            yield self._judge_cuts()
        yield self._judge_waits()
        if self.died_at < math.inf:
            yield from self._judge_outage()
        if self.refusals:
            yield Verdict(
                "callers sent away",
                f"{len(self.refusals):,}",
                "must be 0",
                kept=False,
                complaint=f"The pool did not serve everybody: {self.refusals[0]}",
            )
        if self.remains is not None:
            yield self._judge_remains(self.remains)

    def _judge_remains(self, left: PoolStats) -> Verdict:
        expected = CONNECTIONS if self._is_server_there() else 0
        whole = left.idle == expected and not left.in_use and not left.waiting
        return Verdict(
            "all killed, connections idle",
            f"{left.idle} of {expected}" if expected else f"{left.idle}",
            f"{left.in_use} in use, {left.waiting} waiting",
            kept=whole,
            complaint=f"All greenlets are dead, and of {expected} connections {left.idle} are idle,"
            f" {left.in_use} in use, and {left.waiting} callers waiting.",
        )

    def _judge_cuts(self) -> Verdict:
        most = CONNECTIONS + self.opened_in_vain if self.died_at < math.inf else 0
        return Verdict(
            "cut short by the server's end",
            f"{self.cut_short:,}",
            f"at most {most}, one per connection" if most else "must be 0",
            kept=self.cut_short <= most,
            complaint=f"{self.cut_short:,} requests were cut short: connections that were dead"
            " already have been handed out.",
        )

    def _judge_waits(self) -> Verdict:
        median = statistics.median(self.waits) if self.waits else 0.0
        slowest = max(self.waits, default=0.0)
        # A request that holds its connection for long delays everybody behind it: that is fair.
        most = SLOWEST * median + self.longest_hold + self.lag
        times = f"{slowest / median:.1f} times" if median else "no multiple of"
        return Verdict(
            "slowest wait for a connection",
            _ms(slowest),
            f"{times} the median, {_ms(median)}",
            kept=slowest <= most,
            complaint=f"A caller waited {_ms(slowest)} for a connection.  {SLOWEST} times the"
            f" median is {_ms(SLOWEST * median)}, and no caller held one for longer than"
            f" {_ms(self.longest_hold)}.",
        )

    def _judge_outage(self) -> Iterator[Verdict]:
        away = min(self.back_at, self.ended_at) - self.died_at
        most_dials = int(MOST_DIALS + MOST_DIALS_PER_SECOND * away)
        yield Verdict(
            "dials while the server was away",
            f"{self.failed_dials:,}",
            f"in {away:.1f} s, at most {most_dials}",
            kept=self.failed_dials <= most_dials,
            complaint=f"The server, away for {away:.1f} s, was dialed {self.failed_dials:,} times.",
        )
        if self.back_at == math.inf:
            return  # interrupted meanwhile
        for label, reply_at, most in (
            ("time to recover: the first reply", self.first_reply_at, RECOVERY),
            ("a reply for everybody", self._everybody_at(), RECOVERY + EVERYBODY),
        ):
            took = reply_at - self.back_at
            if took == math.inf and self.interrupted.is_set():
                return
            says = f"{took:.2f} s" if took < math.inf else "never"
            busy = f", and {self.lag:.1f} s as the machine is busy" if self.lag > TICK else ""
            yield Verdict(
                label,
                says,
                f"at most {most:.1f} s{busy}",
                kept=took <= most + self.lag,
                complaint=f"After the server's return, {label}: {says}.",
            )

    def _everybody_at(self) -> float:
        return math.inf if self.unserved else self.last_reply_at


@dataclass(frozen=True)
class Verdict:
    """A row of the table; *kept* is None where nothing is promised."""

    label: str
    figure: str
    remark: str
    kept: bool | None = None
    complaint: str = ""


def _exchange(sock: Any, request: bytes) -> bytes:
    """Send *request*, and return what comes back, up to the end of a line."""
    sock.sendall(request)
    reply = b""
    while not reply.endswith(b"\n"):
        data = sock.recv(4096)
        if not data:
            raise ConnectionError("the server has hung up")
        reply += data
    return reply


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"


# The screen


class _Screen:
    """Where it is shown: on a terminal a live line is rewritten, elsewhere it is one a second."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._is_terminal = out.isatty() and os.environ.get("TERM") != "dumb"
        self._colored = self._is_terminal and "NO_COLOR" not in os.environ
        self._cells = ["●", "○", "◌"]
        try:
            "".join(self._cells).encode(out.encoding or "ascii")
        except (UnicodeError, LookupError):
            self._cells = ["#", "o", "."]
        self._due_at = 0.0
        self._is_live = False

    def print(self, text: str = "") -> None:
        self._out.write(text + "\n")
        self._out.flush()

    def live(self, line: str) -> None:
        if self._is_terminal:
            width = shutil.get_terminal_size().columns - 1
            self._out.write(f"\r{line[:width]}\x1b[K")
            self._out.flush()
            self._is_live = True
        elif monotonic() >= self._due_at:
            self._due_at = monotonic() + 1.0 - TICK / 2
            self.print(line)

    def end_live(self) -> None:
        if self._is_live:
            self.print()

    def bar(self, in_use: int, idle: int, connecting: int) -> str:
        """A cell for each connection, where it moves and there is space."""
        if not self._is_terminal or shutil.get_terminal_size().columns < 80 + CONNECTIONS:
            return ""
        used, free, dialed = self._cells
        return f"{used * in_use + free * idle + dialed * connecting:<{CONNECTIONS}}  "

    def table(self, verdicts: Sequence[Verdict]) -> None:
        label, figure, remark = (
            max(len(getattr(verdict, name)) for verdict in verdicts)
            for name in ("label", "figure", "remark")
        )
        marks = {None: "", True: self._paint("kept", 32), False: self._paint("BROKEN", 31)}
        for v in verdicts:
            row = f"  {v.label:<{label}}  {v.figure:>{figure}}   {v.remark:<{remark}}"
            self.print(f"{row}  {marks[v.kept]}".rstrip())

    def _paint(self, text: str, color: int) -> str:
        return f"\x1b[1;{color}m{text}\x1b[0m" if self._colored else text


class _Rate:
    """Per second, over the last second."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def __call__(self, count: int) -> float:
        now = monotonic()
        self._seen.append((now, count))
        while len(self._seen) > 2 and self._seen[1][0] < now - 1.0:
            self._seen.popleft()
        then, before = self._seen[0]
        return (count - before) / (now - then) if now > then else 0.0


# The server


class _Server:
    """An echo server in a process of its own."""

    def __init__(self) -> None:
        self.listens_since = math.inf
        self._process: Any = None

    def start(self, port: int = 0) -> tuple[str, int]:
        """Start it and wait until it listens; returns its address."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "geventpool", SERVE, str(port)],
            stdin=subprocess.PIPE,  # it ends when this does
            stdout=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C is meant for the demo alone
        )
        with gevent.Timeout(30.0, RuntimeError("the echo server does not start")):
            words = self._process.stdout.readline().split()
        if not words:
            raise RuntimeError("the echo server could not start")
        self.listens_since = float(words[1])
        return "127.0.0.1", int(words[0])

    def stop(self) -> None:
        """Kill it, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process.stdin.close()
            self._process.stdout.close()
            self._process = None


def _serve(port: int) -> int:
    """Be that process: echo lines, some of them late, until standard input ends."""
    server = StreamServer(_listen(port), _echo)
    server.start()
    print(server.server_port, monotonic(), flush=True)
    socket.wait_read(sys.stdin.fileno())
    return 0


def _listen(port: int) -> Any:
    # Below the ports that systems give to outgoing connections: else the pool, dialing a server
    # that is away, might be connected to itself.
    for candidate in [port] if port else random.sample(range(20000, 32000), 100):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", candidate))
            listener.listen(1024)
            return listener
        except OSError as error:
            listener.close()
            if port or error.errno != errno.EADDRINUSE:
                raise
    raise RuntimeError("no free port was found")


def _echo(sock: Any, address: object) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        while line := sock.recv(4096):
            if random.random() < LATE_SHARE:
                gevent.sleep(LATE_BY)
            sock.sendall(line)
    except OSError:
        pass  # its client has gone


# The command line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="A gevent-native pool of connections."
    )
    commands = parser.add_subparsers(dest="command", title="commands", metavar="")
    demo = commands.add_parser(
        "demo",
        help="show a pool under load, and through an outage of its server",
        description=f"{GREENLETS} greenlets share a pool of {CONNECTIONS} connections to an echo"
        " server, which is late at times, is killed half-way, and comes back.  Shows what the pool"
        " does meanwhile, and in the end whether it has kept its promises.",
        epilog="Exit status: 0 if every promise was kept, 1 if one was broken, 2 if there was"
        " nothing to talk to, 130 if you stopped it (by Ctrl-C, the table so far is shown).",
    )
    demo.add_argument(
        "--seconds", type=_duration, default=8.0, help="how long to go on (default: 8)"
    )
    demo.add_argument(
        "--host",
        help="use a server of yours, which must echo lines, instead; it is not stopped"
        " (default: 127.0.0.1 if there is a --port)",
    )
    demo.add_argument("--port", type=_port, help="the port of that server")
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


def main(argv: Sequence[str] | None = None, demo: type[Demo] = Demo) -> int:
    """Run the command line *argv*; returns the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == [SERVE]:
        return _serve(int(words[1]))
    parser = _parser()
    options = parser.parse_args(words)
    if options.command is None:
        parser.print_help()
        return 0
    if options.host is not None and options.port is None:
        parser.error("--host needs a --port")
    address = None
    if options.port is not None:
        address = (options.host or "127.0.0.1", options.port)
        reason = _why_no_echo(address)
        if reason:
            print(f"{PROGRAM} demo: {address[0]}:{address[1]}: {reason}", file=sys.stderr)
            return 2
    try:
        return _show(demo(options.seconds, address), _Screen(sys.stdout))
    except BrokenPipeError:  # as by "| head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _show(demo: Demo, screen: _Screen) -> int:
    """Run *demo* and print its table."""
    log = logging.getLogger("geventpool.pool.demo")
    log.addHandler(logging.NullHandler())
    log.propagate = False  # dials will fail, and the table says how many
    with _interrupts(demo.interrupted):
        demo.run(screen)
    screen.print()
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


def _why_no_echo(address: tuple[str, int]) -> str:
    """Why there is no line-echo server at *address*; empty if there is one."""
    line = b"geventpool %d\n" % random.getrandbits(32)
    try:
        with gevent.Timeout(10.0, TimeoutError("no reply")):
            with socket.create_connection(address) as sock:
                reply = _exchange(sock, line)
    except OSError as error:
        return f"{error}"
    return "" if reply == line else f"no line-echo server: {line!r} was answered by {reply[:40]!r}"


if __name__ == "__main__":
    sys.exit(main())
