"""SQL: values are bound, names are quoted by `sql_identifier`, statements that a model wrote pass `sql_guard`.

`sql_guard` needs sqlglot (`pip install 'agentrt[security]'`); it is imported by the first call.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Literal, TypeAlias

from msgspec import Struct

from agentrt import options
from agentrt.security.sanitize import UnsafeInput, check_line, check_lines
from agentrt.security.sql_statement import Guard

__all__ = ["Dialect", "sql_guard", "sql_identifier"]

Dialect: TypeAlias = Literal["postgres", "sqlite", "mysql", "mssql", "bigquery"]

_PARTS = 4  # server or project, database, schema, name


class _Rule(Struct, frozen=True, kw_only=True):
    """How a database writes a name: `doubled` is written twice inside, `measure` counts towards `limit`."""

    opening: str
    doubled: str
    limit: int | None
    unit: str
    measure: Callable[[str], int] = len
    refused: str = ""


_RULES: dict[str, _Rule] = {
    # Longer names are cut without an error (NAMEDATALEN), so two names could become one.
    "postgres": _Rule(
        opening='"',
        doubled='"',
        limit=63,
        unit="bytes in UTF-8",
        measure=lambda name: len(name.encode("utf-8", "surrogatepass")),
    ),
    # Not '"': a name in double quotes that no column has is taken for a string, without an error.
    "sqlite": _Rule(opening="`", doubled="`", limit=None, unit="characters"),
    "mysql": _Rule(opening="`", doubled="`", limit=64, unit="characters"),
    "mssql": _Rule(
        opening="[",
        doubled="]",
        limit=128,
        unit="units of UTF-16",
        measure=lambda name: len(name.encode("utf-16-le", "surrogatepass")) // 2,
    ),
    # Inside its backticks a dot separates names, and a backslash begins an escape.
    "bigquery": _Rule(opening="`", doubled="", limit=300, unit="characters", refused="`\\."),
}


def sql_identifier(name: str | list[str] | tuple[str, ...], dialect: Dialect = "postgres") -> str:
    """`name`, quoted as a name of a table, column, schema ... by the rules of `dialect`.

        sql_identifier("order")              ->  "order"
        sql_identifier(("shop", "or.der"))   ->  "shop"."or.der"

    A text is one name, whatever is in it; a list or tuple is a name of up to 4 parts. A quoted name means
    exactly the name that is stored: in Postgres `Users` and `users` are two. Quoting makes a name harmless, it does
    not make it one that the caller may use: if names come from outside, look them up in a list first.

    Raises `UnsafeInput` for an empty name, control, bidi and invisible characters, line breaks, tabs, and what the
    dialect cannot hold: Postgres 63 bytes (it would cut the rest off), MySQL 64 characters of the basic plane and no
    space at the end, SQL Server 128 units of UTF-16, BigQuery 300 characters without backtick, backslash and dot.
    """
    options.choice("dialect", dialect, tuple(_RULES))
    parts = tuple(name) if isinstance(name, list | tuple) else (name,)
    if not 1 <= len(parts) <= _PARTS:
        raise UnsafeInput(f"the name for SQL must have 1 to {_PARTS} parts, not {len(parts)}", rule="parts")
    return ".".join(_quoted(part, dialect, _RULES[dialect]) for part in parts)


def _quoted(name: str, dialect: Dialect, rule: _Rule) -> str:
    what = "the name for SQL"
    if not isinstance(name, str):
        raise UnsafeInput(f"{what} must be text, not {type(name).__name__}", rule="type")
    if not name:
        raise UnsafeInput(f"{what} is empty; no database has such a name", rule="empty", offset=0)
    check_line(name, what)
    if rule.limit is not None and rule.measure(name) > rule.limit:
        raise UnsafeInput(
            f"{what} may have at most {rule.limit} {rule.unit} in {dialect}; shorten it", rule="length"
        )
    for offset, character in enumerate(name):
        if character in rule.refused or (dialect == "mysql" and character > "\uffff"):
            raise UnsafeInput(
                f"{what} has U+{ord(character):04X} at character {offset}, which {dialect} does not allow in a name",
                rule="character",
                offset=offset,
            )
    if dialect == "mysql" and name.endswith(" "):
        raise UnsafeInput(
            f"{what} ends with a space, which mysql does not allow", rule="character", offset=len(name) - 1
        )
    doubled = name.replace(rule.doubled, rule.doubled * 2) if rule.doubled else name
    return f"{rule.opening}{doubled}{']' if dialect == 'mssql' else rule.opening}"


def sql_guard(
    sql: str,
    *,
    dialect: Dialect,
    tables: Collection[str | Sequence[str]] | None = None,
    functions: Collection[str] = (),
    max_rows: int | None = None,
    max_length: int = 20_000,
) -> str:
    """The statement to execute instead of `sql`, which a model wrote, if that only reads; else `UnsafeInput`.

    One SELECT, UNION, INTERSECT or EXCEPT, also after WITH, passes: no other statement, no second one, no WITH that
    changes data, INTO, FOR UPDATE, hint, placeholder or session variable. What is returned is written anew from the
    tree that was checked, without comments; it may look different and means the same.

    `tables`: the tables that may be read, as "orders", "shop.orders" or ("shop", "orders"). An entry allows what is
    written with just these parts, so "orders" does not allow `shop.orders`. By default all, without the catalogs of
    the database; a list is better. Postgres: names as they are stored. SQLite, SQL Server: capitals do not matter.
    `functions`: names that are allowed beside the list of `agentrt.security.sql_functions` (on it is none that acts,
    waits, reads files or settings, or runs text); "schema.name" for one that is called so.
    `max_rows`: rows of the result at most: LIMIT (TOP, FETCH) is added or lowered. By default there is no limit.
    `max_length`: characters of `sql` at most, 20,000 by default.

    It is one layer of three: execute it as a role that may only read these tables, in a read-only transaction with a
    time limit (docs/boundaries.md has the lines for Postgres and SQLite). It does not limit what a query costs, does
    not look into views and functions that someone defined anew under a known name, and does not judge which rows may
    be seen. Raises `UnsafeInput`, and `ConfigError` for a wrong option or if sqlglot is missing.
    """
    guard = Guard(dialect=dialect, tables=tables, functions=functions, max_rows=max_rows)
    if not isinstance(sql, str):
        raise UnsafeInput(f"the statement must be text, not {type(sql).__name__}", rule="type")
    if len(sql) > options.count("max_length", max_length):
        raise UnsafeInput(
            f"the statement may have at most {max_length} characters; shorten it", rule="length"
        )
    check_lines(sql, "the statement")
    return guard.check(sql)
