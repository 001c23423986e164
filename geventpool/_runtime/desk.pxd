cimport cython
from geventpool._runtime cimport clock
from geventpool._runtime.fields cimport PoolFields
from geventpool._runtime.slots cimport Caller, ConnectionSlot, PoolBucket
from geventpool._runtime.waiting cimport WaitingLine
from geventpool._scheduler.scheduler cimport Scheduler

cdef double NEVER
cdef dict deadlines
cdef object forks_seen


cdef class Desk:
    cdef object __weakref__
    cdef public object _runtime
    cdef public object _hub
    cdef public unsigned long _ident
    cdef public Scheduler _scheduler
    cdef public WaitingLine _line
    cdef public object _index
    cdef public object _notifier
    cdef public object _timeout_losses
    cdef public object inspector

    @cython.locals(
        slot=ConnectionSlot, waiter=Caller, began=double, now=double, deadline=double,
        useless_after=double, requeued=bint,
    )
    cpdef tuple acquire(self, PoolFields owner, PoolBucket bucket, object timeout)

    @cython.locals(slot=ConnectionSlot, bucket=PoolBucket, used=double)
    cpdef object checkin(self, object owner, tuple hold, object conn, bint suspect=*)
