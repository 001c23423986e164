"""Leave so many mutants of a session of cosmic-ray, drawn at random, and in random order.

    python .ci/sample_mutants.py SESSION SIZE [SEED]

So a run may be stopped at any time, and what it has found by then is a fair sample.  Those that a
filter has skipped go, too: ``cr-report`` would count each of them as killed.
"""

from __future__ import annotations

import random
import sqlite3
import sys

MUTANTS = """
    select job_id from mutation_specs where job_id not in (select job_id from work_results)
    order by module_path, start_pos_row, start_pos_col, operator_name, operator_args, occurrence
"""
TABLES = ("work_results", "mutation_specs", "work_items")


def sample(session: str, size: int, seed: int) -> int:
    """How many mutants there were; *size* of them are left."""
    with sqlite3.connect(session) as database:
        mutants = [job for (job,) in database.execute(MUTANTS)]
        chosen = random.Random(seed).sample(mutants, min(size, len(mutants)))
        specs = [
            row
            for job in chosen
            for row in database.execute("select * from mutation_specs where job_id = ?", [job])
        ]
        for table in TABLES:
            database.execute(f"delete from {table}")
        database.executemany("insert into work_items values (?)", [(job,) for job in chosen])
        for row in specs:
            places = ", ".join("?" * len(row))
            database.execute(f"insert into mutation_specs values ({places})", row)
    return len(mutants)


if __name__ == "__main__":
    _, name, wanted, *rest = sys.argv
    drawn_from = sample(name, int(wanted), int(rest[0]) if rest else random.randrange(1000))
    print(f"{min(int(wanted), drawn_from)} of {drawn_from} mutants")
