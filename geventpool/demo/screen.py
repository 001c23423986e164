"""Where a demo is shown: a terminal, or whatever else its output goes to."""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Sequence
from time import monotonic
from typing import TextIO

from geventpool.demo.verdicts import Verdict

__all__ = ["TICK", "Rate", "Screen"]

TICK = 0.1  # seconds from one live line to the next


class Screen:
    """Where it is shown: on a terminal a live line is rewritten, elsewhere it is one a second."""

    def __init__(self, out: TextIO, cells: int) -> None:
        self._out = out
        self._count = cells
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
        if not self._is_terminal or shutil.get_terminal_size().columns < 80 + self._count:
            return ""
        used, free, dialed = self._cells
        return f"{used * in_use + free * idle + dialed * connecting:<{self._count}}  "

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


class Rate:
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
