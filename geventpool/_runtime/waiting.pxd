cimport cython
from geventpool._runtime cimport clock
from geventpool._runtime.fields cimport Alarm, PoolFields
from geventpool._runtime.slots cimport Caller, ConnectionSlot, PoolBucket
from geventpool._scheduler.scheduler cimport Scheduler

cdef double NEVER
cdef object forks_seen


cdef class WaitingLine:
    cdef public object _hub
    cdef public Scheduler _scheduler
    cdef public object _timers
    cdef public Alarm _deadlines
    cdef public Alarm _deadlocks
    cdef public object _checker
    cdef public object _notifier

    @cython.locals(
        bucket=PoolBucket, slot=ConnectionSlot, deadlines=Alarm, deadlocks=Alarm, waited=double,
        deadline=double, late=bint,
    )
    cpdef object wait(
        self, PoolFields owner, Caller waiter, double began, double now, object timeout, bint requeued
    )
