"""What the scheduler is made of, each part by itself and to the last digit."""

from __future__ import annotations

import pytest

from geventpool._scheduler.audit import AUDIT_EVERY
from geventpool._scheduler.ceiling import PEACE, Ceiling
from geventpool._scheduler.delay_control import DelayControl
from geventpool._scheduler.dial_window import DialWindow
from geventpool._scheduler.idle_queue import IdleQueue
from geventpool._scheduler.limit import Limit
from geventpool._scheduler.line import Line
from geventpool._scheduler.model import Bucket, Slot
from geventpool._scheduler.outage import Outage
from geventpool._scheduler.state import AT_ONCE, CHECKING, IDLE, NEVER
from geventpool._scheduler.waiter import Waiter
from geventpool.backoff import Backoff
from geventpool.errors import PoolDown
from geventpool.events import Reason
from geventpool.overload import CoDel
from support.world import REFUSED

BUCKET = Bucket("b", size=1, min_size=0)


def waiter(ticket: int, deadline: float | None = None) -> Waiter:
    return Waiter(BUCKET, ticket, deadline, None)


def lying_idle(since: float) -> Slot:
    slot = Slot(BUCKET, since)
    slot.state = IDLE
    return slot


# The bucket


def test_a_new_bucket_has_nothing_and_its_fast_path_is_nobodys() -> None:
    bucket = Bucket("b", size=3, min_size=1, max_overflow=2)

    assert (bucket.fast_path_thread, bucket.fast_path_open) == (0, 0)
    assert (bucket.open, bucket.connecting, bucket.closing, bucket.coming) == (0, 0, 0, 0)
    assert (bucket.checking, bucket.salvaging, bucket.filling, bucket.demand) == (0, 0, 0, 0)
    assert (bucket.dial_failed, bucket.reasons) == (0, {})
    assert (bucket.maximum, bucket.own.maximum) == (5, 5)
    assert (bucket.condemned_at, bucket.reconcile_at) == (AT_ONCE, NEVER)
    assert (bucket.closed, bucket.postponed) == (False, False)
    assert (bucket.dials.most, bucket.dials.width, bucket.min_idle) == (16, 1, 0)
    assert (bucket.troubled, bucket.patient) == (False, True)


def test_a_new_slot_has_been_used_by_nobody() -> None:
    slot = Slot(BUCKET, 9.0)

    assert (slot.since, slot.dialed_at, slot.checked_at) == (9.0, 9.0, 9.0)
    assert (slot.uses, slot.idled, slot.unverified) == (0, 0.0, False)
    assert (slot.retire_at, slot.expires_at, slot.fast_path_until) == (NEVER, NEVER, NEVER)
    assert slot.retire_for is Reason.EXPIRED


def test_a_new_waiter_has_got_nothing() -> None:
    new = waiter(1)

    assert (new.pending, new.slot, new.error, new.expired) == (True, None, None, False)
    assert (new.came, new.useless_after, new.requeued) == (0.0, NEVER, False)
    new.expired = True
    assert not new.pending


def test_what_two_have_counted_alike_is_added() -> None:
    one, other = (Bucket(name, size=1, min_size=0) for name in "ab")
    for bucket in (one, other):
        bucket.dial_failed = 3
        bucket.reasons = {Reason.ERROR: 3}

    one.absorb(other)

    assert (one.dial_failed, one.reasons) == (6, {Reason.ERROR: 6})


@pytest.mark.parametrize(
    ("size", "min_size", "filling", "min_idle", "kept"),
    [(4, 1, 0, 0, 1), (4, 1, 0, 2, 2), (4, 1, 1, 2, 4), (1, 3, 1, 0, 3), (4, 3, 0, 2, 3)],
)
def test_how_many_are_kept_open(
    size: int, min_size: int, filling: int, min_idle: int, kept: int
) -> None:
    bucket = Bucket("b", size=size, min_size=min_size, min_idle=min_idle)
    bucket.count_filling(filling)

    assert bucket.min_kept == kept


@pytest.mark.parametrize("gone", ["closed", "postponed"])
def test_one_that_is_closed_or_postponed_lacks_nothing_though_its_server_is_probed(
    gone: str,
) -> None:
    bucket = Bucket("b", size=2, min_size=2)
    bucket.outage.begin(1.0)
    assert bucket.missing == 2

    setattr(bucket, gone, True)

    assert bucket.missing == 0


def test_what_is_to_be_replaced_is_lacking_beside_what_is_not_there() -> None:
    bucket = Bucket("b", size=3, min_size=3)
    bucket.open = 2
    bucket.retiring[lying_idle(1.0)] = None

    assert bucket.missing == 2


def test_waiters_could_use_no_more_places_than_their_own_limit_has() -> None:
    bucket = Bucket("b", size=2, min_size=0)
    for ticket in range(3):
        bucket.waiters.join(waiter(ticket))

    eligible = []
    for used in range(4):
        bucket.own.used = used
        eligible.append(bucket.eligible)
    assert eligible == [2, 1, 0, 0]
    for connecting, unserved in ((1, 2), (2, 1), (3, 0), (4, 0)):
        bucket.connecting = connecting
        assert bucket.unserved == unserved


def test_a_server_that_is_probed_lacks_one_connection_at_least() -> None:
    bucket = Bucket("b", size=2, min_size=0)
    assert bucket.missing == 0

    bucket.outage.begin(1.0)

    assert bucket.missing == 1


def test_books_are_audited_once_a_minute() -> None:
    assert AUDIT_EVERY == 60.0


# The line


def test_a_deadline_before_that_of_one_ahead_is_known_and_one_after_it_too() -> None:
    line = Line()
    for ticket, deadline in enumerate((5.0, 9.0, 7.0, 9.0, 8.0)):
        line.join(waiter(ticket, deadline))

    assert line.latest == 9.0
    assert line.next_deadline() == 5.0
    assert {w.deadline for w in line.due(7.0)} == {5.0, 7.0}


def test_set_right_a_line_knows_the_latest_deadline_in_it() -> None:
    line = Line()
    for ticket, deadline in enumerate((1e9, 3e9, 2e9)):
        line.join(waiter(ticket, deadline))

    line.set_right()

    assert line.latest == 3e9
    line.join(waiter(3, 1e8))
    assert line.next_deadline() == 1e8


def test_one_with_no_deadline_that_goes_back_in_line_is_the_latest() -> None:
    line = Line()
    line.join(waiter(2, 5.0))
    line.rejoin(waiter(1))
    line.join(waiter(3, 9.0))

    assert line.latest == NEVER
    assert line.next_deadline() == 5.0
    assert {w.ticket for w in line.due(9.0)} == {2, 3}


def test_nobody_is_due_before_its_deadline_and_anybody_at_it() -> None:
    line = Line()
    line.join(waiter(1, 5.0))
    line.join(waiter(2, 4.0))

    assert not line.due(3.9)
    assert [w.ticket for w in line.due(4.0)] == [2]
    assert sorted(w.ticket for w in line.due(5.0)) == [1, 2]


def test_a_line_that_is_empty_has_no_latest_deadline() -> None:
    line = Line()
    line.join(waiter(1, 5.0))
    line.drop(line.oldest)

    assert line.latest == AT_ONCE
    assert line.next_deadline() == NEVER
    line.join(waiter(2, 3.0))
    assert line.next_deadline() == 3.0


def test_a_deadline_is_known_after_many_before_it_have_come_and_gone() -> None:
    line = Line()
    for ticket in range(9):
        line.join(waiter(ticket, 1e9))
    line.join(waiter(9, 50.0))
    for ticket in range(10, 300):
        late = waiter(ticket, 60.0)
        line.join(late)
        assert len(line._early) <= 64 + 2 * len(line)
        line.drop(late)

    assert line.next_deadline() == 50.0
    assert [w.ticket for w in line.due(50.0)] == [9]


# The idle queue


def test_one_that_comes_back_from_a_check_lies_between_those_that_were_idle_longer_and_less() -> (
    None
):
    queue = IdleQueue()
    for since in (1.0, 5.0, 3.0, 3.0, 9.0, 7.0):
        queue.push(lying_idle(since))

    assert [slot.since for slot in queue] == [1.0, 3.0, 3.0, 5.0, 7.0, 9.0]
    assert queue.living == 6


def test_tombstones_are_no_idle_slots_and_go_when_they_come_to_the_front() -> None:
    queue = IdleQueue()
    slots = [lying_idle(float(n)) for n in range(4)]
    for slot in slots:
        queue.push(slot)

    for slot in (slots[1], slots[0]):
        slot.state = CHECKING
        queue.take_out(slot)

    assert (queue.living, queue.tombstones) == (2, 1)
    assert queue.longest_idle() is slots[2]
    assert (queue.living, queue.tombstones) == (2, 0)


# The limit


def test_a_limit_that_is_just_full_is_not_overfull() -> None:
    limit = Limit(3)
    limit.used = 2
    assert (limit.full, limit.overfull, limit.spare) == (False, False, 1)
    limit.used = 3
    assert (limit.full, limit.overfull, limit.spare) == (True, False, 0)

    limit.used, limit._closing, limit._coming = 5, 1, 1
    assert (limit.full, limit.overfull, limit.spare) == (True, True, -2)
    limit._closing = 2
    assert (limit.overfull, limit.spare) == (False, -1)


def test_the_places_of_a_limit_are_reserved_as_far_as_waiters_could_use_them() -> None:
    limit = Limit(5)
    limit.used = 3
    limit._demand = 1
    assert not limit.reserved
    for more in (2, 3):
        limit._demand = more
        assert limit.reserved
    limit._demand = 0
    limit._coming = 1
    assert not limit.reserved
    for claimed in (2, 3):
        limit._coming = claimed
        assert limit.reserved


def test_a_limit_says_what_it_is_and_may_rise_only_where_a_subclass_says_so() -> None:
    limit = Limit(3, "total")
    limit.used = 2

    assert repr(limit) == "<Limit total 2 of 3>"
    assert repr(Limit(float("inf"))) == "<Limit 0 of inf>"
    assert not limit.may_rise
    assert limit.may_dial()


# The dial window


def test_the_window_doubles_up_to_its_most_and_a_failure_sets_it_back() -> None:
    window = DialWindow(5, Backoff(first=1.0, longest=8.0, jitter=0.0))

    widths = []
    for _ in range(4):
        widths.append(window.width)
        window.opened(1.0, 2.0)
    assert widths == [1, 2, 4, 5]
    assert window.failed(2.0, 3.0)
    assert (window.width, window.failures) == (1, 1)
    assert window.retry_at == pytest.approx(4.0)
    assert not window.may_dial(0, 3.9)
    assert window.may_dial(0, window.retry_at)
    assert not window.may_dial(1, window.retry_at)
    assert not window.may_dial(4, window.retry_at)  # begun before the failure


def test_even_without_a_pause_the_next_dial_is_not_made_at_once() -> None:
    window = DialWindow(4, Backoff(first=0.0, longest=0.0, jitter=0.0))

    window.failed(5.0, 5.0)

    assert 5.0 < window.retry_at < 5.001


def test_a_dial_that_was_begun_at_the_moment_of_the_last_failure_tells_something_new() -> None:
    window = DialWindow(4, Backoff(first=1.0, longest=8.0, jitter=0.0))
    window.failed(1.0, 3.0)

    assert not window.failed(2.9, 4.0)
    assert window.failed(3.0, 4.0)
    window.opened(4.0, 5.0)
    assert not window.failing


def test_a_server_that_is_full_is_asked_by_one_dial_at_a_time_without_a_pause() -> None:
    window = DialWindow(8, Backoff(first=1.0, longest=8.0, jitter=0.0))
    window.opened(1.0, 1.0)
    window.failed(2.0, 2.0)
    window.width = 4

    window.server_is_full(1.9)
    assert (window.width, window.failing) == (1, True)  # that dial was begun before the failure
    window.server_is_full(2.0)
    assert (window.width, window.failing) == (1, False)


def test_when_somebody_has_to_mend_something_the_pause_is_the_longest_at_once() -> None:
    window = DialWindow(8, Backoff(first=1.0, longest=8.0, jitter=0.0))

    window.failed(2.0, 2.0, longest=True)

    assert window.retry_at == pytest.approx(10.0)
    assert window.failures == 1


# The outage


def test_an_outage_begins_so_long_after_the_first_dial_that_failed() -> None:
    outage = Outage(3.0)
    assert outage.begins_at == NEVER

    outage.note_dialing(True, 10.0)
    outage.note_dialing(True, 12.0)
    assert outage.begins_at == 13.0
    outage.dials = 4
    outage.note_dialing(False, 12.5)
    assert (outage.begins_at, outage.dials) == (NEVER, 0)
    outage.note_dialing(True, 20.0)
    outage.begin(23.0)
    assert (outage.on, outage.begins_at, outage.failing_since) == (True, NEVER, 20.0)
    outage.forget()
    assert (outage.on, outage.probing, outage.asked_at, outage.dials) == (False, False, AT_ONCE, 0)


@pytest.mark.parametrize(("since", "probing"), [(59.9, True), (60.0, False)])
def test_one_of_many_is_probed_for_a_minute_after_its_last_caller(
    since: float, probing: bool
) -> None:
    outage = Outage(3.0)
    outage.begin(10.0)

    outage.look_who_asks(False, True, 10.0 + since)
    assert outage.probing is probing
    outage.look_who_asks(False, False, 10.0 + since)
    assert outage.probing
    outage.look_who_asks(True, True, 100.0)
    outage.look_who_asks(False, True, 100.0 + since)
    assert outage.probing is probing


def test_who_is_sent_away_is_told_why_and_since_when() -> None:
    outage = Outage(3.0)
    outage.note_dialing(True, 10.0)
    outage.begin(13.0)

    error = outage.error("p", REFUSED, 1.5, 14.25)
    assert isinstance(error, PoolDown)
    assert str(error) == (
        "pool 'p': nothing is open and every dial has failed for 4.250 s"
        "; last dial: OSError: refused"
    )
    assert (error.pool, error.down_for, error.retry_after) == ("p", 4.25, 1.5)
    assert error.__cause__ is REFUSED
    assert str(outage.error("p", None, 1.5, 14.25)).endswith("failed for 4.250 s")


def test_how_long_it_lasts_is_known_on_a_clock_that_has_just_begun() -> None:
    outage = Outage(1.0)
    outage.note_dialing(True, 1.0)
    outage.begin(2.0)

    error = outage.error("p", None, 1.0, 3.5)

    assert isinstance(error, PoolDown)
    assert error.down_for == 2.5


# The ceiling


def test_a_ceiling_rises_by_one_each_second_and_not_a_moment_before() -> None:
    ceiling = Ceiling()
    assert not ceiling.on
    ceiling.lower(2, REFUSED, 10.0)
    assert (ceiling.on, ceiling.most, ceiling.rises_at) == (True, 2, 11.0)

    for now, most in ((10.9, 2), (11.0, 3), (11.9, 3), (14.5, 6)):
        ceiling.rise(100, now)
        assert ceiling.most == most
    assert ceiling.rises_at == 15.0
    assert PEACE == 1.0


@pytest.mark.parametrize(("maximum", "on"), [(4, True), (3, False), (2, False)])
def test_a_ceiling_that_has_reached_the_maximum_is_forgotten(maximum: int, on: bool) -> None:
    ceiling = Ceiling()
    ceiling.lower(2, REFUSED, 10.0)

    ceiling.rise(maximum, 11.0)

    assert ceiling.on is on
    assert ceiling.error is (REFUSED if on else None)


# Controlled delay


def control(target: float = 0.1, interval: float = 1.0) -> DelayControl:
    made = DelayControl(CoDel(target=target, interval=interval))
    made.begins(10.0)
    return made


@pytest.mark.parametrize(
    ("waited", "at", "slow"),
    [
        (0.5, 11.9, False),
        (0.5, 12.0, True),  # two intervals
        (0.8, 11.0, True),  # most of an interval already: one
        (0.8, 10.9, False),
        (0.79, 11.5, False),
    ],
)
def test_when_a_line_is_slow(waited: float, at: float, slow: bool) -> None:
    assert control().is_slow(waited, at) is slow


def test_a_line_with_a_longer_interval_is_slow_later() -> None:
    line = control(interval=4.0)

    assert not line.is_slow(3.1, 17.9)
    assert line.is_slow(3.1, 18.0)
    assert control(interval=4.0).is_slow(3.2, 14.0)
    assert line.is_slow(0.0, 21.9)
    line.served(0.0, 21.9)
    assert not line.is_slow(0.0, 22.0)


def test_that_a_line_is_slow_holds_for_an_interval_and_is_then_judged_by_one() -> None:
    line = control()
    assert line.is_slow(0.5, 12.0)
    line.served(0.05, 12.5)  # fine again, but not before the interval is over
    assert line.is_slow(0.0, 12.9)
    assert not line.is_slow(0.0, 13.0)

    line = control()
    assert line.is_slow(0.5, 12.0)
    line.served(0.1, 12.5)  # as short as the target is fine
    assert not line.is_slow(0.5, 13.0)


def test_a_line_in_which_all_have_a_dial_of_their_own_is_fine_at_once() -> None:
    line = control()
    assert line.is_slow(0.5, 12.0)

    line.is_fine(12.1)

    assert not line.is_slow(0.5, 12.2)
    assert not line.is_slow(0.5, 14.0)
    assert line.is_slow(0.5, 14.1)


def test_a_slow_line_is_looked_at_after_the_target_another_twice_in_an_interval() -> None:
    line = control()
    assert line.next_look(10.0) == 10.5
    assert line.is_slow(0.5, 12.0)
    assert line.next_look(12.0) == 12.1
    assert line.longest == 0.2
    even = control(target=1.0)
    assert even.is_slow(0.9, 11.0)
    assert even.next_look(11.0) == 11.5


def test_how_soon_a_line_drains_goes_by_its_pace_and_when_it_is_judged_anew() -> None:
    line = control()
    for number in range(1, 101):
        line.served(0.5, 10.0 + number / 4)
    assert line.drains_in(40, 35.0) == pytest.approx(10.0, rel=0.01)  # a quarter of a second each
    assert line.drains_in(40, 36.0) == 40.0  # none has been served for a second
    assert line.is_slow(0.5, 37.0)
    assert line.drains_in(0, 37.25) == 0.75


def test_a_tenth_of_the_pace_is_that_of_the_last_hand_over() -> None:
    line = control()
    line.served(0.5, 14.0)
    assert line.drains_in(1, 14.0) == pytest.approx(0.4)
    line.served(0.5, 16.0)
    assert line.drains_in(1, 16.0) == pytest.approx(0.56)


def test_how_soon_a_line_drains_on_a_clock_that_has_just_begun() -> None:
    line = DelayControl(CoDel(target=0.1, interval=1.0))
    line.begins(1.0)

    assert line.drains_in(1, 3.0) == 2.0
    assert line.is_slow(0.5, 3.0)
    assert line.drains_in(0, 3.5) == 0.5
    assert line.drains_in(0, 4.5) == 0.0
    line.served(0.5, 5.0)
    assert line.drains_in(1, 5.0) == pytest.approx(0.4)
