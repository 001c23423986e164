cdef class PoolFields:
    cdef public object _bucket
    cdef public object _desk
    cdef public object _lease
    cdef public bint checks_on_checkout
    cdef public dict listening
    cdef public object max_waiting
    cdef public object timeout
    cdef public bint track


cdef class Alarm:
    cdef public double at
    cdef public bint idle
