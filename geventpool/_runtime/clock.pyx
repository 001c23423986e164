"""What every hand-out reads: the time, its place in a histogram, the thread, the greenlet.

The compiled build has this in the place of ``clock.py``, which says what each of them is.
"""

import greenlet

from geventpool._util.clock import monotonic as real
from geventpool.stats import BOUNDS

cdef extern from *:
    """
    #include <time.h>
    #include "pythread.h"
    #if defined(__linux__)
    /* To the bit what time.monotonic() returns. */
    static double geventpool_now(void) {
        struct timespec now;
        if (clock_gettime(CLOCK_MONOTONIC, &now) != 0) return -1.0;
        return (double)((long long)now.tv_sec * 1000000000LL + now.tv_nsec) / 1e9;
    }
    #else
    static double geventpool_now(void) { return -1.0; }
    #endif
    """
    double geventpool_now() noexcept nogil
    unsigned long PyThread_get_thread_ident() noexcept nogil

cdef extern from "Python.h":
    object PyWeakref_NewProxy(object thing, object callback)

cdef extern from *:
    """
    #include "greenlet/greenlet.h"
    #define geventpool_current() ((PyObject *)PyGreenlet_GetCurrent())
    """
    void PyGreenlet_Import()
    object geventpool_current()

cdef extern from *:
    """
    /* What it is for a greenlet, found without its name. */
    #define geventpool_get(descriptor, thing) \
        Py_TYPE(descriptor)->tp_descr_get(descriptor, thing, (PyObject *)Py_TYPE(thing))
    """
    object geventpool_get(object descriptor, object thing)

PyGreenlet_Import()

# None: read the clock itself.
cdef object _read = None if geventpool_now() >= 0 else real


cpdef double monotonic() except? -1:
    if _read is None:
        return geventpool_now()
    return _read()


cdef double[32] _bounds
cdef Py_ssize_t _count = len(BOUNDS)

assert _count <= 32
for _place, _bound in enumerate(BOUNDS):
    _bounds[_place] = _bound


cpdef Py_ssize_t place_of(double seconds) noexcept:
    # So few are searched in order as soon as by halves.
    cdef Py_ssize_t place = 0
    while place < _count and _bounds[place] < seconds:
        place += 1
    return place


cpdef unsigned long get_ident() noexcept:
    return PyThread_get_thread_ident()


cpdef object getcurrent():
    return geventpool_current()


cdef object _dead = greenlet.greenlet.dead


cpdef bint is_dead(object hub) except -1:
    return geventpool_get(_dead, hub)


cpdef object proxy(object thing):
    return PyWeakref_NewProxy(thing, None)


def read_by(read):
    """Have ``monotonic`` return what *read* does from now on; ``real`` undoes it."""
    global _read
    _read = None if read is real and geventpool_now() >= 0 else read
