from geventpool._scheduler.waiter cimport Waiter


cdef class Chain:
    cdef Waiter _first
    cdef Waiter _last
    cdef Py_ssize_t _count

    cdef int _join(self, Waiter waiter, bint last) except -1
    cdef int _leave(self, Waiter waiter) except -1
