"""Judge the mutants of a session of cosmic-ray: by the quick tests, and what lives by the slow.

    python .ci/judge_mutants.py SESSION [STAGES]

To be run in a copy of the tree, which it changes; and as SESSION was made, and sampled.  It goes
through all mutants with the first stage, then through those that live with the next: what the quick
tests let live is known early.  Stopped and called again, it goes on where it was.  STAGES: so many
stages and no more.  What it says in the end: how many are killed, with a 95 % Wilson interval, and
what lives.
"""

from __future__ import annotations

import difflib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from math import sqrt
from pathlib import Path
from typing import Any

from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator

#: pytest, and the model test ends with the first failure that it finds: it does not look for a
#: smaller one, nor try that with the next mutant.
PYTEST = """
import sys, hypothesis, pytest
find = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
hypothesis.settings.register_profile("judge", phases=find, database=None)
hypothesis.settings.load_profile("judge")
early = ["-W", "ignore:Module already imported"]
sys.exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *early, *sys.argv[1:]]))
"""
NOT_SLOW = ["-m", "not slow"]
#: What is run, and how long it may take: many a mutant runs in a circle.
STAGES: list[tuple[list[str], float]] = [
    (["--timeout=20", "-o", "faulthandler_timeout=25", *NOT_SLOW, "tests/scheduler"], 60),
    (["--timeout=200", "tests/scheduler/test_scheduler_model.py"], 300),
    (["-m", "slow", "tests/scheduler/test_audit.py"], 600),
    (["-n", "2", *NOT_SLOW, "tests/promises", "tests/pools", "tests/runtime"], 900),
]
VERDICTS = """
    create table if not exists verdicts
    (job_id text, stage integer, killed integer, why text, primary key (job_id, stage))
"""
MUTANTS = """
    select job_id, module_path, operator_name, operator_args, occurrence, start_pos_row
    from mutation_specs
"""
LEFT = f"""{MUTANTS}
    where job_id not in (select job_id from verdicts where stage = ? or killed)
    order by random()
"""


@contextmanager
def mutated(path: Path, operator: str, args: str, occurrence: int) -> Iterator[str]:
    """The file with that mutation, for as long as the block lasts; what it changes."""
    found: Any = json.loads(args)
    found = json.loads(found) if isinstance(found, str) else found
    before = path.read_text(encoding="utf-8")
    after = mutate_code(before, get_operator(operator)(**found), occurrence)
    assert after is not None, f"no such mutant: {path} {operator} {occurrence}"
    path.write_text(after, encoding="utf-8")
    try:
        yield "\n".join(
            line
            for line in difflib.unified_diff(before.splitlines(), after.splitlines(), n=0)
            if line[:1] in "-+" and line[:3] not in ("---", "+++")
        )
    finally:
        path.write_text(before, encoding="utf-8")


def failure(stage: int) -> str | None:
    """Why the tests of that stage fail; None if they do not."""
    command, seconds = STAGES[stage]
    env = {
        **os.environ,
        "PYTHONDONTWRITEBYTECODE": "1",  # two mutants in one second may be of one size
        "GEVENTPOOL_MODEL_EXAMPLES": "40",
    }
    tests = subprocess.Popen(
        [sys.executable, "-c", PYTEST, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=env,
        start_new_session=True,
    )
    try:
        output, _ = tests.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(tests.pid, signal.SIGKILL)
        tests.communicate()
        return "ran into the time limit"
    if tests.returncode == 0:
        return None
    failed = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR", "E  "))]
    return "\n".join(failed[-4:]) or output[-500:]


def bury_stillborn(database: sqlite3.Connection) -> None:
    """Take out what does not compile, as ``/`` for the ``*`` of a signature."""
    for job, path, operator, args, occurrence, row in database.execute(MUTANTS).fetchall():
        with mutated(Path(path), operator, args, occurrence):
            code = Path(path).read_text(encoding="utf-8")
        try:
            compile(code, path, "exec")
        except SyntaxError:
            database.execute("delete from mutation_specs where job_id = ?", [job])
            database.execute("delete from verdicts where job_id = ?", [job])
            print(f"does not compile: {path}:{row}")
    database.commit()


def judge(database: sqlite3.Connection, stage: int) -> None:
    """Have the mutants that live so far go through *stage*."""
    left = database.execute(LEFT, [stage]).fetchall()
    if left and (why := failure(stage)):
        sys.exit(f"the tests of stage {stage} fail without any mutant:\n{why}")
    for number, (job, path, operator, args, occurrence, row) in enumerate(left, 1):
        with mutated(Path(path), operator, args, occurrence) as change:
            why = failure(stage)
        database.execute("insert into verdicts values (?, ?, ?, ?)", [job, stage, bool(why), why])
        database.commit()
        print(f"{stage} {number}/{len(left)} {'killed' if why else 'LIVES'} {path}:{row}")
        print((why or f"{operator}\n{change}").splitlines()[-1] if why else change, flush=True)


def wilson(part: int, whole: int, z: float = 1.96) -> tuple[float, float]:
    """Where the share is by which *part* of *whole* were found, 95 times in 100."""
    share, more = part / whole, z * z / whole
    middle = (share + more / 2) / (1 + more)
    reach = z * sqrt(share * (1 - share) / whole + more / (4 * whole)) / (1 + more)
    return middle - reach, middle + reach


def report(database: sqlite3.Connection) -> None:
    (whole,) = database.execute("select count(*) from mutation_specs").fetchone()
    (killed,) = database.execute("select count(*) from verdicts where killed").fetchone()
    low, high = wilson(killed, whole)
    print(f"{killed} of {whole} killed: {killed / whole:.1%} ({low:.1%} to {high:.1%})")
    for _job, path, operator, args, occurrence, row in database.execute(LEFT, [-1]):
        with mutated(Path(path), operator, args, occurrence) as change:
            print(f"{path}:{row} {operator}\n{change}")


if __name__ == "__main__":
    _, session, *stages = sys.argv
    with sqlite3.connect(session) as verdicts:
        verdicts.execute(VERDICTS)
        bury_stillborn(verdicts)
        for stage in range(int(stages[0]) if stages else len(STAGES)):
            judge(verdicts, stage)
        report(verdicts)
