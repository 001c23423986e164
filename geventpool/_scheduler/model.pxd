cdef class Slot:
    cdef public Bucket bucket
    cdef public object state
    cdef public double since
    cdef public double dialed_at
    cdef public Py_ssize_t uses
    cdef public object waiter
    cdef public double idled
    cdef public double checked_at
    cdef public object close_reason
    cdef public bint unverified
    cdef public double retire_at
    cdef public object retire_for
    cdef public double expires_at
    cdef public double fast_path_until


cdef class Bucket:
    cdef dict __dict__
    cdef object __weakref__
    cdef public object _idle
    cdef public object fast_path_max_idle
    cdef public unsigned long fast_path_open
    cdef public unsigned long fast_path_thread
    cdef public object pop_idle
    cdef public object push_idle
    cdef public object scheduler
    cdef public object waiters
    cdef public object own
    cdef public object shared
    cdef public object limits
    cdef public object slots
    cdef public object retiring
    cdef public object delay_control
    cdef public object reasons
    cdef public object name
    cdef public object size
    cdef public bint simple
    cdef public bint closed
    cdef public bint patient
    cdef public bint troubled
    cdef public bint lifo
    cdef public bint postponed
    cdef public Py_ssize_t open
    cdef public Py_ssize_t connecting
    cdef public Py_ssize_t checking
    cdef public Py_ssize_t salvaging
    cdef public Py_ssize_t closing
    cdef public Py_ssize_t coming
