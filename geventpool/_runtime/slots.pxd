cimport cython
from geventpool._runtime cimport clock
from geventpool._scheduler.model cimport Bucket, Slot
from geventpool._scheduler.waiter cimport Waiter


cdef class ConnectionSlot(Slot):
    cdef public object conn
    cdef public object ref
    cdef public object holder
    cdef public bint returning
    cdef public object where
    cdef public Py_ssize_t where_use
    cdef public object ident
    cdef public object why_unusable
    cdef public bint looks_on_return
    cdef public Py_ssize_t loose_use
    cdef public object raised_before
    cdef public object fds
    cdef public object identities
    cdef public object broken_by
    cdef public bint forked
    cdef public double reported_since

    cpdef bint is_quiet(self)
    cpdef bint comes_back_clean(self, object owner, object conn)


cdef class Caller(Waiter):
    cdef public bint gone


cdef class PoolBucket(Bucket):
    cdef public Py_ssize_t[17] use_counts  # one more than there are BOUNDS
    cdef public double use_long
    cdef public double use_max
    cdef public double use_sum
    cdef public Py_ssize_t[17] wait_counts
    cdef public double wait_max
    cdef public double wait_sum
    cdef public Py_ssize_t waiting_max
    cdef public object key
    cdef public object owner
    cdef public object retry_timer
    cdef public object look_timer
