cimport cython
from geventpool._scheduler.inbox cimport Inbox
from geventpool._scheduler.line cimport Line
from geventpool._scheduler.model cimport Bucket, Slot
from geventpool._scheduler.places cimport Places
from geventpool._scheduler.waiter cimport Waiter

cdef object IN_USE
cdef int AT_WORK
cdef int CUT_SHORT
cdef int FREE


cdef class Scheduler(Inbox):
    cdef public object _verbs
    cdef public object _wake
    cdef public dict with_waiters
    cdef public object tickets

    cpdef object try_checkout(self, Bucket bucket, double now)

    @cython.locals(bucket=Bucket, waiters=Line, own=Places, deadline=double)
    cpdef object enqueue(self, Waiter waiter, double now, bint requeued=*)

    @cython.locals(bucket=Bucket, waiters=Line, own=Places, waiter=Waiter)
    cpdef object release(self, Slot slot, double now)
