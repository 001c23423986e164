"""Waiters in a row, the first of which is found at once, and which any may leave from anywhere.

The compiled build has this in the place of ``chain.py``, and of an OrderedDict only what is used.
"""

cimport cython
from geventpool._scheduler.waiter cimport Waiter


cdef class Chain:
    def __len__(self):
        return self._count

    def __contains__(self, waiter):
        return isinstance(waiter, Waiter) and (<Waiter>waiter)._chain is self

    def __iter__(self):
        cdef Walk walk = Walk.__new__(Walk)
        walk._next = self._first
        return walk

    def __setitem__(self, Waiter waiter not None, value):
        if waiter._chain is not self:
            self._join(waiter, True)

    def __delitem__(self, Waiter waiter not None):
        self._leave(waiter)

    def pop(self, waiter, default):
        if waiter in self:
            self._leave(waiter)
        return default

    def move_to_end(self, Waiter waiter not None, bint last=True):
        self._leave(waiter)
        self._join(waiter, last)

    # Nothing in these two calls Python, so they are whole whatever interrupts.

    cdef int _join(self, Waiter waiter, bint last) except -1:
        if waiter._chain is not None:
            raise ValueError("it is in another chain")
        waiter._chain = self
        self._count += 1
        if self._count == 1:
            self._first = self._last = waiter
        elif last:
            waiter._before = self._last
            self._last._after = waiter
            self._last = waiter
        else:
            waiter._after = self._first
            self._first._before = waiter
            self._first = waiter
        return 0

    cdef int _leave(self, Waiter waiter) except -1:
        if waiter._chain is not self:
            raise KeyError(waiter)
        before, after = waiter._before, waiter._after
        if before is None:
            self._first = after
        else:
            before._after = after
        if after is None:
            self._last = before
        else:
            after._before = before
        self._count -= 1
        waiter._before = waiter._after = None
        waiter._chain = None
        return 0


@cython.final
@cython.freelist(8)
cdef class Walk:
    """From one to the next, as long as they stay."""

    cdef Waiter _next

    def __iter__(self):
        return self

    def __next__(self):
        waiter = self._next
        if waiter is None:
            raise StopIteration
        self._next = waiter._after
        return waiter
