cimport cython
from geventpool._runtime cimport clock
from geventpool._runtime.desk cimport Desk
from geventpool._runtime.fields cimport PoolFields
from geventpool._runtime.slots cimport ConnectionSlot, PoolBucket
from geventpool._scheduler.scheduler cimport Scheduler

# Read at every hand-out; what other modules import from here is not among them.
cdef object IDLE
cdef object IN_USE
cdef double SHORTEST
cdef dict deadlines
cdef object forks_seen


cdef class Lease:
    cdef public PoolBucket _bucket
    cdef public object _conn
    cdef public PoolFields _pool
    cdef public ConnectionSlot _slot
    cdef public object _timeout
    cdef public Py_ssize_t _use

    @cython.locals(
        bucket=PoolBucket, slot=ConnectionSlot, scheduler=Scheduler, desk=Desk, pool=PoolFields,
        now=double,
    )
    cpdef object __enter__(self)

    @cython.locals(
        bucket=PoolBucket, slot=ConnectionSlot, scheduler=Scheduler, now=double, used=double,
    )
    cpdef object __exit__(self, object exc_type, object exc, object traceback)


@cython.locals(lease=Lease)
cpdef object get(PoolFields self, object timeout=*)


@cython.locals(lease=Lease)
cpdef tuple lend(PoolFields pool, PoolBucket bucket, object timeout)

@cython.locals(lease=Lease)
cpdef object take_back(PoolFields pool, tuple hold, object conn, object exc=*)
