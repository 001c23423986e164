"""No pool, but the reason why there is none: importing this raises ImportError."""

raise ImportError(
    "mysqlclient (MySQLdb) waits in C and stops gevent's hub: during a query no other greenlet"
    " runs, no Timeout and no kill arrives.  Use PyMySQL, which speaks the same protocol and nearly"
    " the same API: geventpool.contrib.pymysql"
)
