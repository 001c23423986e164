"""``python -m benchmarks [--quick] [--picture FILE] [row ...]``: measure, print, judge.

Needs the extra ``bench``.  Exit status 1 if a bar was missed.
"""

from gevent import monkey

monkey.patch_all()  # what pools made for threads need; ours does not mind

import argparse  # noqa: E402
import platform  # noqa: E402
import sys  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from pathlib import Path  # noqa: E402

import gevent  # noqa: E402

from benchmarks import (  # noqa: E402
    comparison,
    dials,
    fleet_cap,
    full_cap,
    herd,
    monitored,
    rows,
    simulation,
    subset,
    web,
)
from benchmarks.clients import bars as clients  # noqa: E402
from benchmarks.overload import bars as overload  # noqa: E402

ROWS = {
    **rows.ROWS,
    "full_cap": full_cap.full_cap,
    "dials": dials.dials,
    "monitored": monitored.monitored,
    "simulation": simulation.simulation,
    "fleet": fleet_cap.fleet_cap,
    "subset": subset.subset,
}
#: These have HEADINGS and compare(quick), and no bar.
COMPARISONS = {"peers": comparison, "herd": herd, "web": web}


def main() -> int:
    """Run what the command line asks for."""
    names = [*ROWS, *COMPARISONS, "clients", "overload"]
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: a first look")
    parser.add_argument("--picture", type=Path, help="of overload: a PNG file to draw it into")
    parser.add_argument("rows", nargs="*", metavar="row", help=", ".join(names))
    options = parser.parse_args()
    wanted = options.rows or names
    if unknown := sorted(set(wanted) - set(names)):
        parser.error(f"no such row: {', '.join(unknown)}")

    found, tables = [], []
    for name in wanted:
        print(f"measuring: {name}", file=sys.stderr)
        if name in COMPARISONS:
            tables.append((COMPARISONS[name].HEADINGS, COMPARISONS[name].compare(options.quick)))
        elif name == "clients":
            judged, lines = clients.clients(options.quick)
            found += judged
            tables.append((clients.HEADINGS, lines))
        elif name == "overload":
            judged, lines = overload.overload(options.quick, options.picture)
            found += judged
            tables.append((overload.HEADINGS, lines))
        else:
            found += ROWS[name](options.quick)

    print(
        f"{platform.python_implementation()} {platform.python_version()},"
        f" gevent {gevent.__version__}, {platform.system()} {platform.machine()}"
    )
    if found:
        _print_table(
            ("what | reference", "ours", "reference", "ratio", "bar", ""),
            [
                (
                    row.what,
                    row.ours,
                    row.reference,
                    f"{row.ratio:.2f}",
                    f"{'>=' if row.at_least else '<='} {row.bar:g}",
                    "PASS" if row.ok else "FAIL",
                )
                for row in found
            ],
        )
    for headings, lines in tables:
        _print_table(headings, lines)
    return 0 if all(row.ok for row in found) else 1


def _print_table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(headings, *lines, strict=True)]
    print()
    for line in (headings, ["-" * width for width in widths], *lines):
        first, *others = (
            text.ljust(width) if at == 0 else text.rjust(width)
            for at, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join((first, *others)))


if __name__ == "__main__":
    sys.exit(main())
