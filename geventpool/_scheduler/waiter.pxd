from geventpool._scheduler.model cimport Bucket


cdef class Waiter:
    cdef public Bucket bucket
    cdef public object ticket
    cdef public double deadline
    cdef public object callback
    cdef public double came
    cdef public double useless_after
    cdef public object slot
    cdef public object error
    cdef public bint expired
    cdef public bint requeued
    cdef public object wake_handle
    # Of the Chain that it is in, and of those next to it in that.
    cdef object _chain
    cdef Waiter _before
    cdef Waiter _after

    cpdef object begin(
        self, Bucket bucket, object ticket, double deadline, object callback, double came,
        double useless_after,
    )
