"""What `sql_guard` lets pass is executed: it says the same as what was written, and does nothing but read.

The last tests show the two other layers, as docs/boundaries.md describes them, without the guard.
"""

from __future__ import annotations

import functools
import re
import sqlite3
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers.postgres import Database

from agentrt.security.sanitize import UnsafeInput
from agentrt.security.sql import sql_guard
from security.queries import ANALYTIC, OTHER_DIALECTS, SCHEMA
from security.statements import HOSTILE

ROOT = Path(__file__).parents[2]
TABLES = ("customers", "orders", "items", "staff")


@pytest.fixture
def shop() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.executescript(SCHEMA)
    yield connection
    connection.close()


def plain(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [tuple(float(v) if isinstance(v, Decimal) else v for v in row) for row in rows]


def test_every_analytic_query_runs_on_sqlite_and_says_the_same(shop: sqlite3.Connection) -> None:
    for sql in (*ANALYTIC, *OTHER_DIALECTS["sqlite"]):
        guarded = sql_guard(sql, dialect="sqlite", tables=[*TABLES])
        assert shop.execute(guarded).fetchall() == shop.execute(sql).fetchall(), sql


@pytest.fixture
def shop_in_postgres(postgres: Database) -> Iterator[Any]:
    """A connection of the superuser: what protects here is the guard alone."""
    import psycopg

    with psycopg.connect(postgres.url) as connection:
        connection.execute(SCHEMA.encode())
        connection.commit()
        yield connection


def test_every_analytic_query_runs_on_postgres_and_says_the_same(shop_in_postgres: Any) -> None:
    for sql in (*ANALYTIC, *OTHER_DIALECTS["postgres"]):
        guarded = sql_guard(sql, dialect="postgres", tables=[*TABLES])
        found = shop_in_postgres.execute(guarded.encode()).fetchall()
        expected = shop_in_postgres.execute(sql.encode()).fetchall()
        assert plain(found) == plain(expected), sql


def test_a_with_that_names_itself_does_not_read_the_table_in_sqlite(shop: sqlite3.Connection) -> None:
    # The guard takes it for a reference to itself; this is why that is right.
    sql = sql_guard("WITH vault AS (SELECT * FROM vault) SELECT * FROM vault", dialect="sqlite", tables=[])
    with pytest.raises(sqlite3.OperationalError, match="circular reference"):
        shop.execute(sql)
    sql = sql_guard(
        "WITH vault AS (SELECT 1 AS a UNION ALL SELECT (SELECT count(*) FROM vault)) SELECT * FROM vault",
        dialect="sqlite",
        tables=[],
    )
    with pytest.raises(sqlite3.OperationalError, match="circular reference"):
        shop.execute(sql)


# ---------------------------------------------------------------------------------- what passes changes nothing
_PLACES = [
    "{}",
    "SELECT {}",
    "SELECT * FROM ({}) AS x",
    "WITH a AS ({}) SELECT * FROM a",
    "WITH RECURSIVE a(n) AS ({}) SELECT n FROM a",
    "SELECT 1 UNION {}",
    "({}) UNION ALL (SELECT 1)",
    "SELECT id FROM orders WHERE id IN ({})",
    "SELECT id FROM orders ORDER BY ({})",
    "SELECT coalesce({}, 1)",
    "SELECT CASE WHEN {} THEN 1 END",
    "SELECT * FROM {}",
    "SELECT * FROM orders, LATERAL {} AS l",
    "SELECT count(*) FILTER (WHERE {}) FROM orders",
    "{} LIMIT 1",
    "{} -- ",
    "{} /*",
    "/* {} */ SELECT 1",
    "SELECT '{}'",
    'SELECT "{}"',
    "SELECT $${}$$",
    "SELECT E'\\'{}'",
    "SELECT 1; {}",
    "{};",
    "EXPLAIN ANALYZE {}",
]
_PARTS = [
    *(statement for (dialect, _), statements in HOSTILE.items() for statement in statements),
    *ANALYTIC,
    *(statement.removeprefix("SELECT ") for statement in HOSTILE["postgres", "a function that acts"]),
    *(
        "orders",
        "id",
        "1",
        "'",
        '"',
        "$$",
        "--",
        "/*",
        "*/",
        ";",
        "\\",
        "(",
        ")",
        "pg_sleep(0)",
        "vault",
        "lower('A')",
    ),
]
nested = st.builds(
    lambda part, places: functools.reduce(lambda sql, place: place.replace("{}", sql), places, part),
    st.sampled_from(_PARTS),
    st.lists(st.sampled_from(_PLACES), min_size=1, max_size=3),
)
spliced = st.builds(
    lambda a, b, at: a[: at % (len(a) + 1)] + b + a[at % (len(a) + 1) :],
    st.sampled_from(_PARTS),
    st.sampled_from(_PARTS),
    st.integers(0, 200),
)
READS = {
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
}


@given(nested | spliced)
@settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_whatever_passes_does_nothing_but_read_in_sqlite(shop: sqlite3.Connection, sql: str) -> None:
    try:
        guarded = sql_guard(sql, dialect="sqlite", tables=TABLES, max_rows=50)
    except UnsafeInput:
        return
    done: list[tuple[Any, ...]] = []

    def watch(*action: Any) -> int:
        done.append(action)
        return sqlite3.SQLITE_OK

    # A text may recurse without end.
    steps = iter(range(100))
    shop.set_progress_handler(lambda: next(steps, None) is None, 10_000)
    shop.set_authorizer(watch)
    try:
        shop.execute(guarded).fetchmany(100)
    except sqlite3.Error:
        pass  # it is only a text: no such column, wrong number of arguments
    finally:
        shop.set_authorizer(None)
    assert {action[0] for action in done} <= READS
    read = {action[1].lower() for action in done if action[0] == sqlite3.SQLITE_READ}
    assert not any(name == "vault" or name.startswith(("sqlite_", "pragma_")) for name in read)


@given(nested | spliced)
@settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_whatever_passes_does_nothing_but_read_in_postgres(shop_in_postgres: Any, sql: str) -> None:
    import psycopg

    try:
        guarded = sql_guard(sql, dialect="postgres", tables=TABLES, max_rows=50)
    except UnsafeInput:
        return
    connection = shop_in_postgres
    connection.execute("SET LOCAL statement_timeout = '2s'")
    try:
        connection.execute(guarded.encode()).fetchall()
        # Whatever writes, locks a row or creates something gets a transaction id.
        assert connection.execute("SELECT pg_current_xact_id_if_assigned()").fetchone() == (None,)
        locks = (
            "SELECT mode, relation::regclass::text FROM pg_locks WHERE pid = pg_backend_pid() AND locktype {}"
        )
        held = connection.execute(locks.format("<> 'virtualxid'")).fetchall()
        assert {mode for mode, _ in held} <= {"AccessShareLock"}
        assert "vault" not in {relation for _, relation in held}
    except psycopg.Error:
        pass  # it is only a text: no such column, wrong number of arguments
    finally:
        connection.rollback()


# --------------------------------------------------------------------------------- the other layers, as documented
def recipe(language: str) -> str:
    """The only block of `language` with a recipe in docs/boundaries.md: what is promised there is what is tested."""
    blocks = re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / "boundaries.md").read_text(), re.DOTALL)
    (found,) = [block for block in blocks if "read_only" in block]
    return str(found)


def read_only_sqlite(file: Path) -> sqlite3.Connection:
    names: dict[str, Any] = {}
    exec(recipe("python"), names)
    connection: sqlite3.Connection = names["read_only"](file)
    return connection


def test_the_recipe_for_sqlite_changes_nothing_even_without_the_guard(tmp_path: Path) -> None:
    file = tmp_path / "shop.db"
    writer = sqlite3.connect(file, isolation_level=None)
    writer.executescript(SCHEMA)
    before = list(writer.iterdump())
    reader = read_only_sqlite(file)
    for (dialect, _), statements in HOSTILE.items():
        for statement in statements if dialect == "sqlite" else ():
            try:
                reader.executescript(statement)
            except (sqlite3.Error, sqlite3.Warning, MemoryError):
                continue
    for sql in (*ANALYTIC, *OTHER_DIALECTS["sqlite"]):
        reader.execute(sql_guard(sql, dialect="sqlite")).fetchall()
    reader.close()
    assert list(writer.iterdump()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["shop.db"]
    writer.close()


def state_of(database: Database) -> list[Any]:
    tables = (
        "SELECT relname, relacl::text FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1"
    )
    roles = "SELECT rolname, rolsuper, rolconfig FROM pg_roles ORDER BY 1"
    return [database.execute(f"SELECT * FROM {name} ORDER BY 1") for name in (*TABLES, "vault")] + [
        database.execute(tables),
        database.execute(roles),
        database.execute("SELECT name, setting FROM pg_settings WHERE source <> 'client' ORDER BY 1"),
    ]


def test_the_recipe_for_postgres_changes_nothing_even_without_the_guard(postgres: Database) -> None:
    import psycopg

    role = f"reader_{postgres.name}"
    lines = (
        recipe("sql").replace("reader", role).replace("shop", postgres.name).replace("from your secrets", "x")
    )
    with psycopg.connect(postgres.url) as connection:
        connection.execute(SCHEMA.encode())
        connection.execute(lines.encode())
    before = state_of(postgres)
    try:
        with psycopg.connect(postgres.url_of(role, "x"), autocommit=True) as connection:
            connection.execute("BEGIN READ ONLY")
            for sql in ANALYTIC:
                connection.execute(sql_guard(sql, dialect="postgres").encode()).fetchall()
            connection.execute("ROLLBACK")
        for (dialect, _), statements in HOSTILE.items():
            for statement in statements if dialect == "postgres" else ():
                with psycopg.connect(postgres.url_of(role, "x"), autocommit=True) as connection:
                    connection.execute("SET statement_timeout = '50ms'")
                    connection.execute("BEGIN READ ONLY")
                    try:
                        connection.execute(statement.encode())
                    except psycopg.Error:
                        continue
        assert state_of(postgres) == before
        denied = pytest.raises(psycopg.errors.InsufficientPrivilege)
        with psycopg.connect(postgres.url_of(role, "x")) as connection, denied:
            connection.execute("SELECT * FROM vault")
    finally:
        postgres.execute(f"DROP OWNED BY {role}")
        postgres.execute(f"DROP ROLE {role}")
