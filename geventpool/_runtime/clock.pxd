cpdef double monotonic() except? -1
cpdef unsigned long get_ident() noexcept
cpdef object getcurrent()
cpdef object proxy(object thing)
