cpdef double monotonic() except? -1
cpdef Py_ssize_t place_of(double seconds) noexcept
cpdef unsigned long get_ident() noexcept
cpdef object getcurrent()
cpdef bint is_dead(object hub) except -1
cpdef object proxy(object thing)
