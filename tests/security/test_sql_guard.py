"""`sql_guard` and `sql_identifier`: what passes only reads, and says the same as what was written."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import Any

import pytest

from agentrt.errors import ConfigError
from agentrt.security.sanitize import UnsafeInput
from agentrt.security.sql import Dialect, sql_guard
from agentrt.security.sql_statement import Guard
from security.queries import ANALYTIC, OTHER_DIALECTS
from security.statements import HOSTILE, HOSTILE_ELSEWHERE

TABLES = ("customers", "orders", "items", "staff")
EVERY_HOSTILE = [
    *((dialect, statement) for (dialect, _), statements in HOSTILE.items() for statement in statements),
    *((dialect, statement) for dialect, statements in HOSTILE_ELSEWHERE.items() for statement in statements),
]


def refusal(sql: str, dialect: Dialect = "postgres", **options: Any) -> UnsafeInput:
    with pytest.raises(UnsafeInput) as caught:
        sql_guard(sql, dialect=dialect, **options)
    return caught.value


# ------------------------------------------------------------------------------------------------- what is refused
def test_there_are_enough_statements() -> None:
    assert len({statement for _, statement in EVERY_HOSTILE}) >= 300
    assert len(set(ANALYTIC)) >= 65


@pytest.mark.parametrize(("dialect", "statement"), EVERY_HOSTILE)
def test_a_hostile_statement_is_refused(
    dialect: Dialect, statement: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for limits in ({}, {"max_rows": 10}):
        error = refusal(statement, dialect, **limits)
        assert error.__context__ is None  # the parser's own error quotes the text
        assert len(str(error)) < 200
    assert caplog.records == []  # the parser would log what it does not know


@pytest.mark.parametrize(
    ("sql", "rule", "says"),
    [
        ("DROP TABLE orders", "statement", "the statement must be a SELECT, alone or after WITH"),
        ("SELECT 1; SELECT 2", "statement", "must be the only one, and another follows at character 8"),
        ("SELECT FROM WHERE", "syntax", "is not understood as postgres at line 1, column"),
        ("SELECT 'open", "syntax", "a quote or comment without an end"),
        ("SELECT pg_sleep(1)", "function", "calls the function 'pg_sleep', which is not among those allowed"),
        ("SELECT * FROM a FOR UPDATE", "clause", "has LOCKS, which is not allowed where data are only read"),
        ("SELECT * FROM ROWS FROM (generate_series(1, 2))", "clause", "has ROWS FROM"),
        ("WITH a AS (something) SELECT 1", "statement", "has something else than a SELECT in its WITH"),
        ("SELECT * FROM pg_shadow", "catalog", "reads 'pg_shadow', which belongs to the database itself"),
        ("SELECT 'x'::secret_type", "type", "converts to a type that is not a common one"),
        ("SELECT " + "(" * 61 + "1" + ")" * 61, "depth", "is nested too deeply"),
        ("SELECT " + "NOT " * 70 + "true", "depth", "is nested too deeply"),
        ("SELECT a" + "[1]" * 70, "depth", "is nested too deeply"),
        ("SELECT '\u202e'", "bidi", "has U+202E RIGHT-TO-LEFT OVERRIDE"),
        ("SELECT \x00", "nul", "has U+0000"),
        ("SELECT " + "1 + " * 6_000 + "1", "length", "at most 20000 characters"),
    ],
)
def test_the_error_says_why(sql: str, rule: str, says: str) -> None:
    error = refusal(sql)
    assert error.rule == rule
    assert says in str(error)


@pytest.mark.parametrize("space", ["\u00a0", "\u2003", "\u3000", "\ufeff", "\u200b", "\u1680", "\u202f"])
@pytest.mark.parametrize("dialect", ["postgres", "sqlite", "mysql", "mssql", "bigquery"])
def test_a_space_that_only_some_take_for_one_joins_no_words(dialect: Dialect, space: str) -> None:
    # For BigQuery this reads a table that is not in the list.
    sql = f"SELECT 1 AS x{space}FROM{space}vault"
    assert refusal(sql, dialect, tables=["orders"]).rule in ("table", "character")


def test_names_and_texts_in_any_language_pass() -> None:
    sql = "SELECT größe, 'a\u00a0b 😀' AS naïve, \"a\u3000b\" FROM заказы WHERE 名 = 'é'"
    assert sql_guard(sql, dialect="postgres") == sql


def test_the_error_says_where() -> None:
    assert refusal("SELECT a, pg_sleep(1) FROM t").offset == 10
    assert refusal("SELECT a FROM t, pg_shadow").offset == 17


def test_what_is_no_text_is_refused() -> None:
    assert refusal(b"SELECT 1").rule == "type"  # type: ignore[arg-type]


def test_a_chain_of_a_thousand_conditions_is_not_too_deep() -> None:
    sql = "SELECT 1 FROM orders WHERE " + " OR ".join(f"id = {number}" for number in range(1_000))
    assert sql_guard(sql, dialect="postgres").count("OR") == 999


# --------------------------------------------------------------------------------------------------------- tables
@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM vault",
        "SELECT * FROM orders, vault",
        "SELECT * FROM orders JOIN vault ON true",
        "SELECT (SELECT secret FROM vault)",
        "SELECT 1 FROM orders WHERE EXISTS (SELECT 1 FROM vault)",
        "SELECT 1 UNION SELECT secret FROM vault",
        "SELECT 1 UNION TABLE vault",
        "WITH a AS (SELECT * FROM vault) SELECT * FROM a",
        "SELECT * FROM public.orders",
        "WITH vault AS (SELECT 1) SELECT * FROM public.vault",
        "SELECT * FROM other.shop.orders",
        'SELECT * FROM "Orders"',
        # A name that a WITH gives elsewhere, or gives only later.
        "WITH vault AS (SELECT * FROM vault) SELECT * FROM vault",
        "WITH a AS (SELECT * FROM vault), vault AS (SELECT 1) SELECT * FROM a",
        "SELECT * FROM vault WHERE EXISTS (WITH vault AS (SELECT 1) SELECT 1 FROM vault)",
        "(WITH vault AS (SELECT 1) SELECT * FROM vault) UNION SELECT secret FROM vault",
        "SELECT * FROM (WITH vault AS (SELECT 1) SELECT * FROM vault) a, vault",
        'WITH "VAULT" AS (SELECT 1) SELECT * FROM vault',
    ],
)
def test_only_the_tables_of_the_list_are_read(sql: str) -> None:
    assert refusal(sql, tables=TABLES).rule == "table"


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM ORDERS AS o",
        'SELECT * FROM "orders"',
        "SELECT * FROM shop.orders",
        "WITH vault AS (SELECT 1 AS a) SELECT * FROM vault",
        "WITH vault AS (SELECT 1 AS a), b AS (SELECT * FROM vault) SELECT * FROM b, Vault",
        "WITH RECURSIVE vault AS (SELECT 1 AS a UNION SELECT a FROM vault) SELECT * FROM vault",
        "WITH vault AS (SELECT 1 AS a) SELECT * FROM orders WHERE id IN (SELECT a FROM vault)",
        "SELECT * FROM generate_series(1, 3) AS vault",
    ],
)
def test_tables_of_the_list_and_of_a_with_are_read(sql: str) -> None:
    assert sql_guard(sql, dialect="postgres", tables=[*TABLES, ("shop", "orders")])


def test_capitals_count_where_the_database_counts_them() -> None:
    assert sql_guard("SELECT * FROM ORDERS", dialect="sqlite", tables=["Orders"])
    assert sql_guard("SELECT * FROM [ORDERS]", dialect="mssql", tables=["orders"])
    assert refusal("SELECT * FROM ORDERS", "mysql", tables=["orders"]).rule == "table"
    assert refusal("SELECT * FROM Orders", "postgres", tables=["Orders"]).rule == "table"


def test_a_catalog_may_be_allowed_by_name() -> None:
    assert sql_guard("SELECT 1 FROM pg_stat_activity", dialect="postgres", tables=["pg_stat_activity"])


# ------------------------------------------------------------------------------------------------------ functions
def test_functions_are_added_by_name() -> None:
    assert refusal("SELECT my_score(total) FROM orders").rule == "function"
    for name in ("my_score", "MY_SCORE", "My_Score"):
        sql = f"SELECT {name}(1)"
        assert sql_guard(sql, dialect="postgres", functions=["My_score"]) == sql
    allowed = ["shop.score", "gen_random_uuid", "current_user"]
    assert sql_guard(
        "SELECT shop.score(1), gen_random_uuid(), current_user", dialect="postgres", functions=allowed
    )
    assert refusal("SELECT other.score(1)", functions=allowed).rule == "function"
    assert refusal("SELECT score(1)", functions=allowed).rule == "function"
    assert refusal("SELECT * FROM other.score(1)", functions=allowed).rule == "function"


def test_a_function_in_quotes_is_not_the_one_of_the_list() -> None:
    assert sql_guard("SELECT AGE(now())", dialect="postgres")
    assert refusal('SELECT "AGE"(now())').rule == "function"
    assert refusal('SELECT "My_Score"(1)', functions=["my_score"]).rule == "function"


# ----------------------------------------------------------------------------------- what is returned is checked too
@pytest.mark.parametrize(
    ("written", "rule"),
    [
        (["SELECT pg_sleep(1)"], "function"),
        (["SELECT 1; DROP TABLE orders"], "statement"),
        (["SELECT * FROM vault"], "table"),
        (["SELECT 2", "SELECT 3"], "rendering"),
    ],
)
def test_a_statement_that_is_written_wrongly_is_refused(
    monkeypatch: pytest.MonkeyPatch, written: list[str], rule: str
) -> None:
    texts = iter(written)
    monkeypatch.setattr(Guard, "_rendered", lambda self, tree: next(texts))
    assert refusal("SELECT 1", tables=TABLES).rule == rule


# ------------------------------------------------------------------------------------------------------- max_rows
@pytest.mark.parametrize(
    ("dialect", "sql", "limited"),
    [
        ("postgres", "SELECT a FROM t", "SELECT a FROM t LIMIT 10"),
        ("postgres", "SELECT a FROM t LIMIT 5", "SELECT a FROM t LIMIT 5"),
        ("postgres", "SELECT a FROM t LIMIT 5000 OFFSET 3", "SELECT a FROM t LIMIT 10 OFFSET 3"),
        ("postgres", "SELECT a FROM t FETCH FIRST 50 ROWS ONLY", "SELECT a FROM t FETCH FIRST 10 ROWS ONLY"),
        ("postgres", "SELECT a FROM t FETCH FIRST ROW ONLY", "SELECT a FROM t FETCH FIRST ROWS ONLY"),
        ("postgres", "SELECT 1 UNION SELECT 2", "SELECT 1 UNION SELECT 2 LIMIT 10"),
        ("postgres", "(SELECT a FROM t LIMIT 99)", "(SELECT a FROM t LIMIT 99) LIMIT 10"),
        ("postgres", "WITH a AS (SELECT 1) SELECT * FROM a", "WITH a AS (SELECT 1) SELECT * FROM a LIMIT 10"),
        ("sqlite", "SELECT a FROM t LIMIT 3, 50", "SELECT a FROM t LIMIT 10 OFFSET 3"),
        ("mysql", "SELECT a FROM t LIMIT 3, 50", "SELECT a FROM t LIMIT 10 OFFSET 3"),
        ("mssql", "SELECT a FROM t", "SELECT TOP 10 [a] FROM [t]"),
        ("mssql", "SELECT TOP (50) a FROM t", "SELECT TOP 10 [a] FROM [t]"),
        ("bigquery", "SELECT a FROM t", "SELECT a FROM t LIMIT 10"),
    ],
)
def test_rows_are_limited(dialect: Dialect, sql: str, limited: str) -> None:
    assert sql_guard(sql, dialect=dialect, max_rows=10) == limited


@pytest.mark.parametrize(
    ("dialect", "sql"),
    [
        ("postgres", "SELECT a FROM t LIMIT ALL"),
        ("postgres", "SELECT a FROM t LIMIT 5 + 5"),
        ("postgres", "SELECT a FROM t LIMIT (SELECT 1000)"),
        ("postgres", "SELECT a FROM t LIMIT '5'"),
        ("postgres", "SELECT a FROM t LIMIT 1e9"),
        ("postgres", "SELECT a FROM t ORDER BY a FETCH FIRST 5 ROWS WITH TIES"),
        ("mssql", "SELECT TOP 50 PERCENT a FROM t"),
        ("mssql", "SELECT TOP 5 WITH TIES a FROM t ORDER BY a"),
        ("sqlite", "SELECT a FROM t LIMIT -1"),
    ],
)
def test_a_limit_that_is_no_number_is_refused_where_rows_are_limited(dialect: Dialect, sql: str) -> None:
    assert refusal(sql, dialect, max_rows=10).rule == "rows"


# --------------------------------------------------------------------------------------------------- what passes
@pytest.mark.parametrize(
    ("dialect", "sql"), [(d, sql) for d, statements in OTHER_DIALECTS.items() for sql in statements]
)
def test_an_analytic_query_passes(dialect: Dialect, sql: str) -> None:
    once = sql_guard(sql, dialect=dialect)
    assert sql_guard(once, dialect=dialect) == once


def test_comments_are_left_out() -> None:
    assert sql_guard("SELECT /* ; */ 1 -- DROP", dialect="postgres") == "SELECT 1"


# ---------------------------------------------------------------------------------------------- options and imports
@pytest.mark.parametrize(
    "options",
    [
        {"dialect": "oracle"},
        {"tables": "orders"},
        {"tables": [""]},
        {"tables": ["a.b.c.d"]},
        {"functions": "lower"},
        {"max_rows": 0},
        {"max_length": 0},
    ],
)
def test_wrong_options_are_mistakes_of_usage(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        sql_guard("SELECT 1", **{"dialect": "postgres", **options})


def test_sqlglot_is_imported_by_the_first_call_and_named_if_it_is_missing() -> None:
    code = """
import sys
sys.modules["sqlglot"] = None  # any import of it fails
from agentrt.security.sql import sql_guard, sql_identifier
print(sql_identifier("a"))
try:
    sql_guard("SELECT 1", dialect="postgres")
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\"a\"\nConfigError sql_guard needs sqlglot: pip install 'agentrt[security]'\n"
