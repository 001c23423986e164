"""SQLAlchemy's ORM on a GeventPool.

DATABASE_URL names the server; without it, it is that of this machine.
Needs ``pip install geventpool[sqlalchemy,psycopg]``.
"""

from gevent import monkey

monkey.patch_all()  # before anything else is imported

import os

import gevent
from sqlalchemy import create_engine, exc, func, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from geventpool.contrib.sqlalchemy import GeventPool

url = make_url(os.environ.get("DATABASE_URL", "postgresql://postgres@127.0.0.1/postgres"))
engine = create_engine(
    url.set(drivername="postgresql+psycopg"),
    poolclass=GeventPool,
    pool_size=5,
    max_overflow=0,
    pool_timeout=10,
)


class Base(DeclarativeBase):
    pass


class Visit(Base):
    __tablename__ = f"visit_{os.getpid()}"
    id: Mapped[int] = mapped_column(primary_key=True)
    who: Mapped[str]


def visit(number):
    with Session(engine) as session:
        session.add(Visit(who=f"visitor {number}"))
        session.commit()
        return session.scalar(select(Visit.who).where(Visit.who == f"visitor {number}"))


Base.metadata.create_all(engine)
try:
    # 100 greenlets on 5 connections; each gets its own answer.
    greenlets = [gevent.spawn(visit, number) for number in range(100)]
    gevent.joinall(greenlets, raise_error=True)
    assert [each.value for each in greenlets] == [f"visitor {n}" for n in range(100)]
    with Session(engine) as session:
        print(session.scalar(select(func.count()).select_from(Visit)), "visits")
    print(engine.pool.status())

    # A query that takes too long: its caller goes on at once, and nobody else gets the late answer.
    try:
        with gevent.Timeout(0.2), engine.connect() as conn:
            conn.execute(text("select pg_sleep(10)"))
    except gevent.Timeout:
        print("given up; then:", visit(100))

    # An administrator ends a session under its user's hands: the others are replaced, too.
    with engine.connect() as conn, engine.connect() as admin:
        pid = conn.scalar(text("select pg_backend_pid()"))
        admin.execute(text("select pg_terminate_backend(:pid)"), {"pid": pid})
        try:
            conn.scalar(text("select 1"))
        except exc.OperationalError as error:
            print("cut off:", error.connection_invalidated)
    print("then:", visit(101))
finally:
    Base.metadata.drop_all(engine)
    engine.dispose()
