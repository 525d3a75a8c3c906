"""`sql_identifier`: quoted by the rules of each dialect, or refused; `test_boundaries_executed` runs it."""

from __future__ import annotations

from typing import Any

import pytest
from servers.postgres import Database

from agentrt.errors import ConfigError
from agentrt.security.sanitize import UnsafeInput
from agentrt.security.sql import Dialect, sql_identifier


@pytest.mark.parametrize(
    ("dialect", "name", "quoted"),
    [
        ("postgres", 'a"b', '"a""b"'),
        ("postgres", ("shop", "or.der"), '"shop"."or.der"'),
        ("postgres", "x" * 63, f'"{"x" * 63}"'),
        ("sqlite", "a`b", "`a``b`"),
        ("mysql", "a`b", "`a``b`"),
        ("mysql", "ä" * 64, f"`{'ä' * 64}`"),
        ("mssql", "a]b[c", "[a]]b[c]"),
        ("mssql", ["db", "dbo", "t"], "[db].[dbo].[t]"),
        ("bigquery", ("my-project", "ds", "t"), "`my-project`.`ds`.`t`"),
    ],
)
def test_a_name_is_quoted_as_its_dialect_does(
    dialect: Dialect, name: str | tuple[str, ...], quoted: str
) -> None:
    assert sql_identifier(name, dialect) == quoted


@pytest.mark.parametrize(
    ("dialect", "name", "rule"),
    [
        ("postgres", "", "empty"),
        ("postgres", ("a", ""), "empty"),
        ("postgres", (), "parts"),
        ("postgres", ("a", "b", "c", "d", "e"), "parts"),
        ("postgres", "x" * 64, "length"),
        ("postgres", "ä" * 32, "length"),
        ("postgres", "a\x00b", "nul"),
        ("postgres", "a\nb", "line"),
        ("postgres", "a\tb", "tab"),
        ("postgres", "a\u202eb", "bidi"),
        ("postgres", "\ud800", "surrogate"),
        ("postgres", 7, "type"),
        ("postgres", ("a", 7), "type"),
        ("mysql", "x" * 65, "length"),
        ("mysql", "a\U0001f600", "character"),
        ("mysql", "a ", "character"),
        ("mssql", "x" * 129, "length"),
        ("mssql", "\U0001f600" * 65, "length"),
        ("bigquery", "a`b", "character"),
        ("bigquery", "a.b", "character"),
        ("bigquery", "a\\b", "character"),
        ("bigquery", "x" * 301, "length"),
    ],
)
def test_a_name_that_the_dialect_cannot_hold_is_refused(dialect: Dialect, name: Any, rule: str) -> None:
    with pytest.raises(UnsafeInput) as caught:
        sql_identifier(name, dialect)
    assert caught.value.rule == rule


def test_postgres_would_have_cut_the_name(postgres: Database) -> None:
    assert postgres.execute(f"SELECT '{'x' * 64}'::name::text") == [("x" * 63,)]


def test_an_unknown_dialect_is_a_mistake_of_usage() -> None:
    with pytest.raises(ConfigError, match="dialect must be one of 'postgres'"):
        sql_identifier("x", "oracle")  # type: ignore[arg-type]
