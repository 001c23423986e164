cdef class Inbox:
    cdef dict __dict__
    cdef object __weakref__
    cdef public object effects
    cdef public object ledger
    cdef public object arbiter
    cdef public int busy
    cdef public object _put_aside
