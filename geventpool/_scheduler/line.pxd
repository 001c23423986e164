from geventpool._scheduler.chain cimport Chain


cdef class Line(Chain):
    cdef public double latest
    cdef public list _early
