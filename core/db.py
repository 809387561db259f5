"""The tables, and how to reach them: SQLite in WAL mode when embedded, PostgreSQL in production.

Leases are compared with the clock of the database alone (`utcnow`), so workers need not agree on the time.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy.engine import Connection, Dialect, Engine
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.pool import ConnectionPoolEntry

from core.errors import ConfigurationError

BUSY_SECONDS = 30
"""How long a writer waits for another one (SQLite), or for the server to take a connection (PostgreSQL)."""

POSTGRESQL_CONNECTION = {
    "connect_timeout": BUSY_SECONDS,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
"""Seconds, the last milliseconds: a server behind a cut line is given up well within a lease, not after hours."""

UNAVAILABLE = (sa.exc.OperationalError, sa.exc.InternalError)
"""What the driver raises while a database cannot be used; the second, PostgreSQL's while it is read-only."""

UPGRADE_LOCK = 0x6E70
"""Whoever upgrades a PostgreSQL has this one: of several that start together, the others wait and find all done."""

MIGRATIONS = Path(__file__).parents[1] / "migrations"


class UtcDateTime(sa.types.TypeDecorator[datetime]):
    """An aware UTC datetime in and out; SQLite, which knows no time zones, stores it as UTC text."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Naive datetimes are refused: they would be guesses."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Back to UTC, whatever the session's time zone."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class utcnow(sa.sql.functions.FunctionElement[datetime]):  # noqa: N801 - reads as an SQL function
    """The database's clock, `offset_seconds` from now."""

    type = UtcDateTime()
    inherit_cache = True

    def __init__(self, offset_seconds: float = 0.0) -> None:
        super().__init__(sa.literal(float(offset_seconds), sa.Float))


@compiles(utcnow, "sqlite")
def _utcnow_sqlite(element: utcnow, compiler: Any, **kw: Any) -> str:
    # Same text as UtcDateTime writes (six digits), so that text comparison is time comparison.
    offset = compiler.process(element.clauses, **kw)
    return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', format('%+.3f seconds', {offset}))"


@compiles(utcnow, "postgresql")
def _utcnow_postgresql(element: utcnow, compiler: Any, **kw: Any) -> str:
    # clock_timestamp, not now(): a transaction may have waited for a lock since it began.
    return f"(clock_timestamp() + make_interval(secs => {compiler.process(element.clauses, **kw)}))"


class seconds_between(sa.sql.functions.FunctionElement[float]):  # noqa: N801 - reads as an SQL function
    """Seconds from one point in time to a later one."""

    type = sa.Float()
    inherit_cache = True

    def __init__(self, earlier: sa.ColumnElement[Any], later: sa.ColumnElement[Any]) -> None:
        super().__init__(earlier, later)


@compiles(seconds_between, "sqlite")
def _seconds_between_sqlite(element: seconds_between, compiler: Any, **kw: Any) -> str:
    earlier, later = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"((julianday({later}) - julianday({earlier})) * 86400.0)"


@compiles(seconds_between, "postgresql")
def _seconds_between_postgresql(element: seconds_between, compiler: Any, **kw: Any) -> str:
    earlier, later = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"extract(epoch FROM ({later} - {earlier}))"


metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("name", sa.String(200)),
    sa.Column("labels", sa.JSON, nullable=False),
    sa.Column("spec", sa.JSON, nullable=False),
    sa.Column("resolved_spec", sa.JSON, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("phase", sa.Text),
    sa.Column("progress", sa.JSON(none_as_null=True)),
    sa.Column("warnings", sa.JSON, nullable=False),
    sa.Column("error", sa.JSON(none_as_null=True)),
    sa.Column("metrics_summary", sa.JSON(none_as_null=True)),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("losses", sa.Integer, nullable=False, server_default="0"),
    sa.Column("checkpoints", sa.JSON(none_as_null=True)),
    sa.Column("owner", sa.String(200)),
    sa.Column("lease_expires_at", UtcDateTime),
    sa.Column("dispatched_at", UtcDateTime),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("queued_at", UtcDateTime),
    sa.Column("started_at", UtcDateTime),
    sa.Column("finished_at", UtcDateTime),
    sa.Column("last_seq", sa.Integer, nullable=False),
    sa.Column("idempotency_key", sa.String(255), unique=True),
    sa.Column("request_sha256", sa.String(64), nullable=False),
    sa.Index(None, "status", "id"),
)

job_events = sa.Table(
    "job_events",
    metadata,
    sa.Column("job_id", sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("type", sa.String(16), nullable=False),
    sa.Column("data", sa.JSON, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
)

# Attempts outlive their job: what only ever grows is counted from them.
job_attempts = sa.Table(
    "job_attempts",
    metadata,
    sa.Column("job_id", sa.String(40), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("worker", sa.String(200), nullable=False),
    sa.Column("queued_at", UtcDateTime),
    sa.Column("started_at", UtcDateTime, nullable=False),
    sa.Column("ended_at", UtcDateTime),
    sa.Column("outcome", sa.String(16)),
    sa.Column("reason", sa.Text),
)

files = sa.Table(
    "files",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("filename", sa.String(255), nullable=False),
    sa.Column("purpose", sa.String(16), nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("key", sa.String(300), nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("columns", sa.JSON(none_as_null=True)),
    sa.Index(None, "created_at", "id"),
)

# A job goes on naming an upload that is deleted once the job has ended.
job_files = sa.Table(
    "job_files",
    metadata,
    sa.Column("job_id", sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("file_id", sa.String(40), primary_key=True),
    sa.Index(None, "file_id"),
)

deletions = sa.Table(
    "deletions",
    metadata,
    sa.Column("prefix", sa.String(300), primary_key=True),
    sa.Column("not_before", UtcDateTime),
)

artifacts = sa.Table(
    "artifacts",
    metadata,
    sa.Column("job_id", sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("name", sa.String(255), primary_key=True),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("media_type", sa.String(100), nullable=False),
)

workers = sa.Table(
    "workers",
    metadata,
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("queues", sa.JSON, nullable=False),
    sa.Column("seen_at", UtcDateTime, nullable=False),
)


def create_engine(url: str) -> Engine:
    """An engine for a `sqlite:///path` or `postgresql+psycopg://…` URL; a SQLite file's folder is made.

    A transaction that will write must begin on `writer(engine)`.

    Raises:
        ConfigurationError: the URL is malformed or names another database, or its folder cannot be made.
    """
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError as error:
        raise ConfigurationError(
            "NEUROPRUNE_DATABASE_URL is not a database URL; write sqlite:///path or postgresql+psycopg://host/name."
        ) from error
    if parsed.drivername in ("sqlite", "sqlite+pysqlite") and parsed.database:
        try:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"The database's folder cannot be made: {error}.") from error
        engine = sa.create_engine(parsed, connect_args={"timeout": BUSY_SECONDS})
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
        return engine
    if parsed.drivername == "postgresql+psycopg":
        return sa.create_engine(parsed, pool_pre_ping=True, connect_args=POSTGRESQL_CONNECTION)
    raise ConfigurationError(
        f"NEUROPRUNE_DATABASE_URL names {parsed.drivername!r}; use sqlite:///path or postgresql+psycopg://host/name."
    )


def writer(engine: Engine) -> Engine:
    """The same engine and pool, for transactions that write.

    SQLite takes its one write lock at BEGIN; taken later, two readers that both turn to writing fail at once.
    """
    return engine.execution_options(sqlite_begin="BEGIN IMMEDIATE")


def _prepare_sqlite(connection: sqlite3.Connection, _entry: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # BEGIN is ours, see _begin_sqlite
    for pragma in ("journal_mode=WAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("sqlite_begin", "BEGIN"))


def upgrade(url: str) -> None:
    """Bring the database to the newest schema.

    Raises:
        ConfigurationError: it cannot be used, or a newer version has changed it.
    """
    with _schema_errors():
        command.upgrade(_alembic(url), "head")


def downgrade(url: str, revision: str) -> None:
    """Take the database back to an earlier schema; what only the newer one can hold is lost.

    Raises:
        ConfigurationError: it cannot be used, or that schema is no earlier one.
    """
    with _schema_errors():
        command.downgrade(_alembic(url), revision)


@contextmanager
def _schema_errors() -> Iterator[None]:
    try:
        yield
    except CommandError as error:
        raise ConfigurationError(
            f"The database's schema stays as it is: {error}. This version knows the revisions up to "
            f"{_newest_revision()}; a newer version may have been here."
        ) from error
    except sa.exc.DBAPIError as error:
        raise ConfigurationError(f"The database cannot be used: {error.orig}") from error


def is_migrated(connection: Connection) -> bool:
    """Whether the schema is the one that this code was written for."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return False
    applied = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one_or_none()
    return bool(applied == _newest_revision())


@cache
def _newest_revision() -> str | None:
    return ScriptDirectory.from_config(_alembic("")).get_current_head()


def _alembic(url: str) -> Config:
    config = Config(attributes={"url": url})
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config
