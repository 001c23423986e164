from geventpool._scheduler.model cimport Bucket


cdef class Waiter:
    cdef public Bucket bucket
    cdef public object ticket
    cdef public object deadline
    cdef public object callback
    cdef public double came
    cdef public double useless_after
    cdef public object slot
    cdef public object error
    cdef public bint expired
    cdef public bint requeued
    cdef public object wake_handle
