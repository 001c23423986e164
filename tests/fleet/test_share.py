"""Who may have how many connections of a cap: the decision itself, without store and clock."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from geventpool.fleet.share import MEMORY, Claim, Record, Report, grant, max_min

claims = st.lists(
    st.builds(
        lambda wants, weight: (wants, weight), st.integers(0, 40), st.sampled_from([1, 1, 1, 2, 5])
    ),
    max_size=8,
).map(lambda found: [Claim(f"{n:02}", *each) for n, each in enumerate(found)])


@given(claims, st.integers(0, 80))
def test_units_are_given_one_by_one_to_who_has_least_for_its_weight(
    claims: list[Claim], whole: int
) -> None:
    given = dict.fromkeys((each.id for each in claims), 0)
    for _ in range(whole):
        hungry = [each for each in claims if given[each.id] < each.wants]
        if not hungry:
            break
        first = min(hungry, key=lambda each: ((given[each.id] + 1) / each.weight, each.id))
        given[first.id] += 1
    assert max_min(claims, whole) == given


@given(claims, st.integers(0, 80))
def test_all_is_given_as_far_as_it_is_wanted(claims: list[Claim], whole: int) -> None:
    assert sum(max_min(claims, whole).values()) == min(whole, sum(each.wants for each in claims))


numbers = count(1)


def report(id: str, wants: int, used: int = 0, has: int = 0, **more: int) -> Report:
    more = {"needs": wants, "floor": 1, "number": next(numbers), **more}
    return Report("db", 10, id, used, has, wants=wants, **more)  # type: ignore[arg-type]


def test_what_another_has_open_is_not_given_before_it_is_closed() -> None:
    records: dict[str, Record] = {}
    share, records = grant(records, report("a", 10), 0.0)
    assert share == 10
    share, records = grant(records, report("b", 10), 0.0)
    assert share == 0  # all of it may be open
    share, records = grant(records, report("a", 10, used=9, has=10), 1.0)
    assert share == 5
    share, records = grant(records, report("b", 10), 1.0)
    assert share == 0
    share, records = grant(records, report("a", 10, used=5, has=5), 2.0)
    share, records = grant(records, report("b", 10), 2.0)
    assert share == 5


def test_one_that_has_gone_without_a_word_is_counted_with_its_floor_for_a_while() -> None:
    share, records = grant({}, report("a", 10, floor=2), 0.0)
    share, records = grant(records, report("b", 10), 9.0)
    assert share == 0
    share, records = grant(records, report("b", 10), 10.0)  # its lease has ended
    assert share == 8
    share, records = grant(records, report("b", 10, has=8), 10.0 + MEMORY * 10.0)
    assert share == 10


def test_one_of_an_older_generation_wants_nothing_but_its_floor() -> None:
    share, records = grant({}, report("old", 10), 0.0)
    share, records = grant(records, report("new", 6, generation=1), 1.0)
    share, records = grant(records, report("old", 10, used=3, has=10), 2.0)
    assert share == 1
    share, records = grant(records, report("old", 10, used=1, has=1), 3.0)
    share, records = grant(records, report("new", 6, generation=1), 3.0)
    assert share == 6


def test_a_store_that_was_emptied_learns_what_each_has() -> None:
    share, records = grant({}, report("a", 10, used=7, has=8), 0.0, learns_until=10.0)
    assert share == 8
    share, records = grant(records, report("b", 10), 0.0, learns_until=10.0)
    assert share == 1  # its floor
    share, records = grant(records, report("c", 10, used=1, has=1), 0.0, learns_until=10.0)
    share, records = grant(records, report("d", 10), 0.0, learns_until=10.0)
    assert share == 0  # no room for it, as far as is known


def test_what_is_needed_comes_before_what_others_would_like_to_spare() -> None:
    share, records = grant({}, report("a", 10, needs=2), 0.0)
    share, records = grant(records, report("b", 6, needs=5), 0.0)
    share, records = grant(records, report("a", 10, needs=2, used=2, has=2), 0.0)
    # Three are left, of which the other would like one.
    assert share == 4
    share, records = grant(records, report("b", 6, needs=5), 0.0)
    assert share == 6


def test_a_report_that_was_given_up_and_comes_late_frees_nothing() -> None:
    late = report("a", 1)
    share, records = grant({}, report("a", 10), 0.0)
    assert share == 10
    assert grant(records, late, 1.0) == (10, records)
    share, records = grant(records, report("b", 10), 1.0)
    assert share == 0


class Worker:
    """A process, as far as the protocol goes."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.has = self.used = self.wants = 0
        self.ends = -1.0  # of its lease, by its own clock
        self.number = 0
        self.sent: tuple[float, Report] | None = None
        self.under_way: list[Report] = []  # given up ones, too
        self.answer: int | None = None
        self.paused = False
        self.alive = True


class Fleet(RuleBasedStateMachine):
    """Two or three workers and a store: messages may take as long as they like, be lost with their
    answers, workers may stop, go on and die, the store may forget all, time passes as it likes.
    Never over the cap."""

    CAP, LEASE, MARGIN = 3, 10.0, 1.0

    @initialize(count=st.integers(2, 3))
    def begin(self, count: int) -> None:
        self.now = 0.0
        self.records: dict[str, Record] = {}
        self.learns_until = 0.0
        self.workers = [Worker(str(n)) for n in range(count)]
        self.born = count

    def some(self, data: st.DataObject, **wanted: bool) -> Worker | None:
        found = [
            each
            for each in self.workers
            if each.alive and all(getattr(each, name) == is_so for name, is_so in wanted.items())
        ]
        return data.draw(st.sampled_from(found)) if found else None

    @rule(data=st.data(), needs=st.integers(0, 4), spare=st.integers(0, 2))
    def a_worker_asks(self, data: st.DataObject, needs: int, spare: int) -> None:
        worker = self.some(data, paused=False)
        if worker is None or worker.sent is not None:
            return
        worker.number += 1
        said = (worker.id, worker.used, worker.has, needs, needs + spare)
        report = Report("db", self.CAP, *said, floor=0, lease=self.LEASE, number=worker.number)
        worker.sent = (self.now, report)
        worker.under_way.append(report)

    @rule(data=st.data())
    def the_store_decides(self, data: st.DataObject) -> None:
        waiting = [each for each in self.workers if each.under_way]
        if waiting:
            worker = data.draw(st.sampled_from(waiting))
            report = data.draw(st.sampled_from(worker.under_way))
            worker.under_way.remove(report)
            share, self.records = grant(
                self.records, report, self.now, learns_until=self.learns_until
            )
            if worker.sent is not None and report is worker.sent[1]:
                worker.answer = share

    @rule(data=st.data(), lost=st.sampled_from([False, False, True]))
    def an_answer_arrives(self, data: st.DataObject, lost: bool) -> None:
        waiting = [each for each in self.workers if each.answer is not None and each.alive]
        waiting = [each for each in waiting if not each.paused]
        if not waiting:
            return
        worker = data.draw(st.sampled_from(waiting))
        assert worker.sent is not None
        assert worker.answer is not None
        if not lost:
            worker.has, worker.ends = worker.answer, worker.sent[0] + self.LEASE - self.MARGIN
        worker.sent = worker.answer = None

    @rule()
    def the_store_loses_all_it_knows(self) -> None:
        # It is another one as of its first report: not before this, at any rate.
        self.records, self.learns_until = {}, self.now + self.LEASE

    @rule(data=st.data())
    def a_worker_gives_up_its_question(self, data: st.DataObject) -> None:
        worker = self.some(data, paused=False)
        if worker is not None:
            worker.sent = worker.answer = None

    @rule(data=st.data())
    def a_worker_opens_one(self, data: st.DataObject) -> None:
        worker = self.some(data, paused=False)
        if worker is None:
            return
        if self.now >= worker.ends:
            worker.has = 0  # its floor
        if worker.used < worker.has:
            worker.used += 1

    @rule(data=st.data())
    def a_worker_closes_one(self, data: st.DataObject) -> None:
        worker = self.some(data, paused=False)
        if worker is not None and worker.used:
            worker.used -= 1

    @rule(data=st.data())
    def a_worker_is_stopped_or_goes_on(self, data: st.DataObject) -> None:
        worker = self.some(data)
        if worker is not None:
            worker.paused = not worker.paused

    @rule(data=st.data())
    def a_worker_dies_and_another_comes(self, data: st.DataObject) -> None:
        worker = self.some(data)
        if worker is not None:
            worker.alive, worker.used = False, 0
            self.born += 1
            self.workers.append(Worker(str(self.born)))

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 9.5, 30.0, 80.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        for worker in self.workers:
            # One that runs closes what its lease does not cover any more.
            if worker.alive and not worker.paused and self.now >= worker.ends:
                worker.has = worker.used = 0

    @precondition(lambda self: hasattr(self, "workers"))
    @invariant()
    def the_cap_holds(self) -> None:
        late = [each for each in self.workers if each.paused and self.now >= each.ends]
        open_ = sum(each.used for each in self.workers if each not in late)
        assert open_ <= self.CAP, [(each.id, each.used, each.has) for each in self.workers]


TestTheCapHolds = Fleet.TestCase
TestTheCapHolds.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("field", ["used", "has", "share"])
def test_what_counts_is_the_most_that_may_be_open(field: str) -> None:
    record = Record(10.0, 1, 1, 1, 1, 1, 1, 1, 10.0, 0)
    assert replace(record, **{field: 5}).counted(0.0) == 5
