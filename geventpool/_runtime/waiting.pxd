cimport cython
from geventpool._runtime cimport clock
from geventpool._runtime.slots cimport Caller, ConnectionSlot, PoolBucket
from geventpool._scheduler.scheduler cimport Scheduler

cdef object forks_seen


cdef class WaitingLine:
    cdef public object _hub
    cdef public Scheduler _scheduler
    cdef public object _timers
    cdef public object _deadlines
    cdef public object _deadlocks
    cdef public object _checker
    cdef public object _notifier

    @cython.locals(bucket=PoolBucket, slot=ConnectionSlot, waited=double)
    cpdef object wait(
        self, object owner, Caller waiter, double began, double now, object timeout, bint requeued
    )
