cdef class Places:
    cdef public object _maximum
    cdef public Py_ssize_t used
    cdef public Py_ssize_t _closing
    cdef public Py_ssize_t _coming
