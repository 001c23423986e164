"""``python -m benchmarks.fuzz [--seed N] [--rounds N | --soak MINUTES]``

Calls the public verbs of both pools and of the manager at random, on whatever build is installed
(PURE_PYTHON=1: the other one).  Exit status 1 if anything did not hold; the seed of each round that
failed is told, and ``--rounds 1 --seed`` with it plays that one again.  A soak also fails if memory
or the number of objects grows.
"""

from __future__ import annotations

import argparse
import gc
import sys
import warnings

from benchmarks.fuzz.rounds import play
from benchmarks.fuzz.server import serving
from benchmarks.fuzz.soak import grown, samples
from geventpool import COMPILED


def main() -> int:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz")
    parser.add_argument("--seed", type=int, default=0, help="of the first round")
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="for so long, instead")
    options = parser.parse_args()
    warnings.simplefilter("ignore", ResourceWarning)  # of connections that are forgotten on purpose
    print("compiled" if COMPILED else "pure Python", flush=True)
    gc.collect()
    gc.freeze()  # what is there to the end is not looked at again and again
    with serving() as port:
        if options.soak is not None:
            return _soak(options.seed, port, options.soak)
        return _fuzz(options.seed, port, options.rounds)


def _fuzz(seed: int, port: int, rounds: int) -> int:
    served = failed = 0
    for each in range(seed, seed + rounds):
        try:
            served += play(each, port)
        except AssertionError as error:
            failed += 1
            print(error, flush=True)
    print(f"{rounds} rounds, {served} connections lent, {failed} rounds failed")
    return 1 if failed else 0


def _soak(seed: int, port: int, minutes: float) -> int:
    found = []
    for sample in samples(seed, port, minutes):
        found.append(sample)
        print(sample, flush=True)
    what = grown(found)
    print("flat" if what is None else f"grown: {what}")
    return 1 if what else 0


if __name__ == "__main__":
    sys.exit(main())
