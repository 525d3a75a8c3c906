"""Texts that attack are used where they are meant to go, and nothing but the intended effect happens.

Each family is also used the wrong way, pasted into a statement or a command line: that shows that the texts are live.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers.postgres import Database

from agentrt.security.file_errors import FileError
from agentrt.security.file_roots import Resolution
from agentrt.security.files import FileAccess
from agentrt.security.sanitize import UnsafeInput, Use, sanitize_input
from agentrt.security.shell import argv, shell_quote
from agentrt.security.sql import sql_identifier
from security.payloads import HARMLESS, NAUGHTY, path_payloads, shell_payloads, sql_payloads

PEOPLE = ((1, "Ada"), (2, "O'Brien"), (3, "Grace"))
RESOLUTIONS: tuple[Resolution, ...] = ("auto", "walk")
ECHO = "import json, sys; print(json.dumps(sys.argv[1:]))"


def passing(texts: list[str], type: Use, **options: bool) -> list[str]:
    """Those of `texts` that pass, as they come out; the others are refused by an error of ours."""
    passed = []
    for text in texts:
        try:
            passed.append(sanitize_input(text, type, **options))
        except UnsafeInput:
            continue
    return passed


# any text at all, and texts made of what has a meaning somewhere
anything = st.one_of(
    st.text(max_size=30),
    st.text(alphabet="'\"\\;|&$`(){}<>*?!#~%_-./ \t\nab=\u00e4\u05d0\U0001f600", max_size=30),
)


# ------------------------------------------------------------------------------------------ values for SQLite
@pytest.fixture
def people() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.executescript(
        "CREATE TABLE people (id INTEGER, name TEXT); CREATE TABLE vault (name TEXT, secret TEXT);"
        "INSERT INTO vault VALUES ('key', 'hush');"
    )
    connection.executemany("INSERT INTO people VALUES (?, ?)", PEOPLE)
    yield connection
    connection.close()


def state(connection: sqlite3.Connection) -> list[list[Any]]:
    return [
        connection.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall(),
        connection.execute("SELECT * FROM people ORDER BY id").fetchall(),
        connection.execute("SELECT * FROM vault").fetchall(),
        connection.execute("PRAGMA database_list").fetchall(),
    ]


def test_bound_values_do_nothing_but_be_compared_in_sqlite(people: sqlite3.Connection) -> None:
    payloads = passing([*sql_payloads(), *HARMLESS], "sql")
    assert len(payloads) >= 3_500
    before = state(people)
    for text in payloads:
        rows = people.execute("SELECT id FROM people WHERE name = ?", (text,)).fetchall()
        assert rows == [(2,)] * (text == "O'Brien")
    assert state(people) == before


def test_values_come_back_from_sqlite_as_they_were(people: sqlite3.Connection) -> None:
    payloads = passing([*sql_payloads(), *HARMLESS], "sql")
    people.execute("CREATE TABLE kept (id INTEGER PRIMARY KEY, text TEXT)")
    people.executemany("INSERT INTO kept (text) VALUES (?)", ((text,) for text in payloads))
    assert [text for (text,) in people.execute("SELECT text FROM kept ORDER BY id")] == payloads


def test_the_same_texts_pasted_into_a_statement_do_harm(people: sqlite3.Connection) -> None:
    before = state(people)
    harmed = 0
    for text in sql_payloads():
        copy = sqlite3.connect(":memory:", isolation_level=None)
        copy.set_authorizer(_no_files)
        people.backup(copy)
        statement = f"SELECT id FROM people WHERE name = '{text}'"
        try:
            harmed += bool(copy.execute(statement).fetchall())
        except (sqlite3.Error, sqlite3.Warning):
            with contextlib.suppress(sqlite3.Error):
                copy.executescript(statement)
            try:
                harmed += state(copy) != before
            except sqlite3.OperationalError:  # a table is gone
                harmed += 1
        copy.close()
    assert harmed >= 100


def _no_files(action: int, *_: object) -> int:
    return sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_ATTACH else sqlite3.SQLITE_OK


@given(anything)
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_whatever_passes_for_sql_survives_sqlite(people: sqlite3.Connection, text: str) -> None:
    for value in passing([text], "sql"):
        assert people.execute("SELECT ?, length(?)", (value, value)).fetchone() == (text, len(text))


# ---------------------------------------------------------------------------------------- values for Postgres
def test_bound_values_do_nothing_but_be_compared_in_postgres(postgres: Database) -> None:
    import psycopg

    payloads = passing([*sql_payloads(), *HARMLESS], "sql")
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute("CREATE TABLE people (id int, name text)")
        connection.execute("CREATE TABLE vault (name text, secret text)")
        connection.cursor().executemany("INSERT INTO people VALUES (%s, %s)", PEOPLE)
        tables = "SELECT relname, relkind FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY relname"
        before = connection.execute(tables).fetchall()
        cursor = connection.cursor()
        with connection.pipeline():
            cursor.executemany(
                "SELECT %s::text, (SELECT count(*) FROM people WHERE name = %s), pg_backend_pid()",
                [(text, text) for text in payloads],
                returning=True,
            )
        answers = []
        while True:
            answers.append(cursor.fetchone())
            if not cursor.nextset():
                break
        pid = connection.info.backend_pid
        assert answers == [(text, int(text == "O'Brien"), pid) for text in payloads]
        assert connection.execute("SELECT * FROM people ORDER BY id").fetchall() == list(PEOPLE)
        assert connection.execute(tables).fetchall() == before


def test_nul_and_surrogates_never_reach_postgres(postgres: Database) -> None:
    import psycopg

    with psycopg.connect(postgres.url) as connection:
        for text in (*NAUGHTY["nul"], *NAUGHTY["surrogate"]):
            # What the check spares the caller: errors of the driver, which hold the text or come from the server.
            with pytest.raises((psycopg.DataError, UnicodeEncodeError)):
                connection.execute("SELECT %s::text", (text,))
            with pytest.raises(UnsafeInput):
                sanitize_input(text, "sql")


@pytest.fixture
def texts_in_postgres(postgres: Database) -> Iterator[Any]:
    import psycopg

    with psycopg.connect(postgres.url, autocommit=True) as connection:
        yield connection


@given(st.lists(anything, max_size=5))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_whatever_passes_for_sql_survives_postgres(texts_in_postgres: Any, texts: list[str]) -> None:
    values = passing(texts, "sql")
    assert texts_in_postgres.execute("SELECT %s::text[]", (values,)).fetchone() == (values,)


# ------------------------------------------------------------------------------------------------------ names
NAMES = [
    "order",
    "a b",
    'a"b',
    "a`b",
    "a]b",
    "a'b",
    "[a]",
    "a.b",
    "a;b",
    "a--b",
    "a/*b",
    "Ünï",
    "SELECT",
    "$1",
    "%s",
    "?",
    "a\\",
]


def test_every_quoted_name_is_that_name_in_sqlite(people: sqlite3.Connection) -> None:
    names = [*NAMES, *passing([*HARMLESS, *sql_payloads()], "path")]
    assert len(names) > 1_000
    for name in names:
        table = sql_identifier(("main", name), "sqlite")
        column = sql_identifier(name, "sqlite")
        people.execute(f"CREATE TABLE {table} ({column} TEXT)")
        assert people.execute("SELECT count(*) FROM sqlite_master WHERE name = ?", (name,)).fetchone() == (1,)
        cursor = people.execute(f"SELECT {column} FROM {table}")
        assert [field[0] for field in cursor.description] == [name]
        people.execute(f"DROP TABLE {table}")
    assert [name for name, _ in state(people)[0]] == ["people", "vault"]


def test_a_name_that_no_column_has_is_an_error_in_sqlite_and_no_string(people: sqlite3.Connection) -> None:
    with pytest.raises(sqlite3.OperationalError, match="no such column"):
        people.execute(f"SELECT {sql_identifier('nonsense', 'sqlite')} FROM people")


def test_every_quoted_name_is_that_name_in_postgres(postgres: Database) -> None:
    import psycopg

    short = [name for name in passing([*HARMLESS, *sql_payloads()], "path") if len(name.encode()) <= 63]
    names = list(dict.fromkeys([*NAMES, *short[:700]]))
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        for name in names:
            column = sql_identifier(name, "postgres")
            cursor = connection.execute(f"SELECT 1 AS {column}".encode())
            assert [field.name for field in cursor.description or ()] == [name]
        table = sql_identifier(("public", 'a"; DROP TABLE x; --'), "postgres")
        connection.execute(f"CREATE TABLE {table} (id int)".encode())
        cursor = connection.execute("SELECT relname FROM pg_class WHERE relname LIKE 'a%%;%%'", ())
        assert cursor.fetchall() == [('a"; DROP TABLE x; --',)]


# -------------------------------------------------------------------------------------------------- arguments
def echoed(arguments: list[str]) -> list[str]:
    done = subprocess.run(
        argv(sys.executable, "-c", ECHO) + arguments, capture_output=True, text=True, check=True
    )
    found: list[str] = json.loads(done.stdout)
    return found


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "owned"


def test_arguments_of_a_process_are_texts_and_nothing_else(marker: Path) -> None:
    payloads = passing([*shell_payloads(marker), *sql_payloads(), *HARMLESS], "shell")
    assert len(payloads) >= 3_000
    for start in range(0, len(payloads), 500):
        assert echoed(payloads[start : start + 500]) == payloads[start : start + 500]
    assert not marker.exists()


def test_a_line_in_an_argument_is_text_too(marker: Path) -> None:
    payloads = passing(list(shell_payloads(marker)), "shell", allow_lines=True)
    assert sum("\n" in text for text in payloads) >= 20
    assert echoed(payloads) == payloads
    assert not marker.exists()


SHELLS = [path for path in map(shutil.which, ("sh", "dash", "bash", "zsh", "ksh")) if path]


@pytest.mark.parametrize("shell", SHELLS)
def test_quoted_words_are_the_texts_in_a_real_shell(shell: str, marker: Path, tmp_path: Path) -> None:
    payloads = [*shell_payloads(marker), *HARMLESS, *list(sql_payloads())[::7]]
    payloads = passing(payloads, "shell", allow_lines=True, allow_leading_dash=True)
    assert len(payloads) >= 700
    words = " ".join(shell_quote(text, allow_lines=True, allow_leading_dash=True) for text in payloads)
    done = subprocess.run(
        [shell, "-c", f"printf '%s\\0' {words}"], capture_output=True, cwd=tmp_path, check=True
    )
    assert done.stdout.decode().split("\0")[:-1] == payloads
    assert list(tmp_path.iterdir()) == []


def test_the_same_texts_without_quotes_run_commands(marker: Path, tmp_path: Path) -> None:
    harmed = 0
    for text in shell_payloads(marker):
        subprocess.run(
            ["sh", "-c", f"echo {text}"],
            cwd=tmp_path,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        harmed += marker.exists()
        for left in tmp_path.iterdir():
            left.unlink()
    assert harmed >= 100


@given(st.lists(anything, max_size=20))
@settings(max_examples=40)
def test_whatever_passes_for_shell_survives_argv_and_a_quoted_line(texts: list[str]) -> None:
    values = passing(texts, "shell")
    assert echoed(argv("x", values=values, separator=None)[1:]) == values
    line = " ".join(["printf '%s\\0' .", *(shell_quote(value) for value in values)])
    done = subprocess.run(["sh", "-c", line], capture_output=True, check=True)
    assert done.stdout.decode().split("\0")[1:-1] == values


# ------------------------------------------------------------------------------------------------------ paths
@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text("hush")
    (tmp_path / "root" / "a" / "b").mkdir(parents=True)
    return tmp_path / "root"


def outside(root: Path) -> list[str]:
    return sorted(
        str(path.relative_to(root.parent)) for path in root.parent.rglob("*") if root not in path.parents
    )


def test_a_path_that_passes_leads_to_nothing_outside_of_the_root(root: Path) -> None:
    secret = root.parent / "secret"
    payloads = list(path_payloads(secret))
    passed = passing(payloads, "path")
    assert len(payloads) >= 9_000
    assert len(passed) >= 200  # such as "%2e%2e%2fetc", which is a name like any other
    below = os.open(root, os.O_DIRECTORY)
    try:
        for path in passed:
            try:
                opened = os.open(path, os.O_RDONLY, dir_fd=below)
            except (FileNotFoundError, IsADirectoryError):
                continue
            os.close(opened)
            assert (root / path).resolve().is_relative_to(root), path
    finally:
        os.close(below)


def test_a_file_that_is_made_by_a_path_that_passes_is_made_below_the_root(root: Path) -> None:
    before = outside(root)
    paths = passing([*list(path_payloads(root.parent / "secret"))[::5], *HARMLESS], "path")
    paths = [path for path in paths if path.rpartition("/")[2] != "."]
    assert len(paths) >= 200
    for number, path in enumerate(paths):
        file = root / f"{number}" / path
        file.parent.mkdir(parents=True)
        file.write_text("x")
    found = {
        os.path.relpath(os.path.join(folder, name), root)
        for folder, _, names in os.walk(root)
        for name in names
    }
    assert found == {os.path.normpath(f"{number}/{path}") for number, path in enumerate(paths)}
    assert outside(root) == before


def test_the_same_paths_unchecked_or_stripped_read_what_is_outside(root: Path) -> None:
    leaked = {"unchecked": 0, "stripped": 0}
    for path in path_payloads(root.parent / "secret"):
        for way, used in (("unchecked", path), ("stripped", sketched(path, "path"))):
            with contextlib.suppress(OSError, ValueError):
                leaked[way] += (root / used).read_text() == "hush"
    assert leaked["unchecked"] >= 25
    assert leaked["stripped"] >= 25


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_file_access_reads_nothing_outside_of_the_root_by_any_of_the_paths(
    root: Path, resolution: Resolution
) -> None:
    with FileAccess(root, "read", resolution=resolution) as files:
        for path in path_payloads(root.parent / "secret"):
            with pytest.raises(FileError):
                files.read_bytes(path)


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_file_access_writes_and_reads_by_what_passes_below_the_root(
    root: Path, resolution: Resolution
) -> None:
    before = outside(root)
    with FileAccess(root, "write", resolution=resolution) as files:
        for path in passing(HARMLESS, "path"):
            files.write(path, path, parents=True)
            assert files.read_text(path) == path
    assert {path.partition("/")[0] for path in HARMLESS} | {"a"} == set(os.listdir(root))
    assert outside(root) == before


# ----------------------------------------------------------------------------------------- the sketch's defects
def sketched(text: str, type: str) -> str:
    """The filter that this one replaces: it takes away what looks bad."""
    if type == "path":
        return re.sub(r"\.\./|[:]", "", text)
    if type == "shell":
        return re.sub(r"[;&|`$(){}]", "", text)
    return re.sub(r"'|\"|;|--|\b(DROP|DELETE|UNION)\b", "", text, flags=re.IGNORECASE)


def test_a_path_is_not_made_into_one_that_escapes(root: Path) -> None:
    path = ".:./.:./etc/passwd"
    assert sketched(path, "path") == "../../etc/passwd"
    assert sanitize_input(path, "path") is path
    with pytest.raises(FileNotFoundError):
        (root / path).read_text()


@pytest.mark.parametrize("tail", ["\ntouch {marker}", " > {marker}", "\n> {marker}"])
def test_newline_and_redirection_run_nothing(tail: str, marker: Path) -> None:
    text = "x" + tail.format(marker=marker)
    subprocess.run(["sh", "-c", f"echo {sketched(text, 'shell')}"], check=True, capture_output=True)
    assert marker.exists()
    marker.unlink()
    line = f"printf %s {shell_quote(text, allow_lines=True)}"
    done = subprocess.run(["sh", "-c", line], check=True, capture_output=True)
    assert done.stdout.decode() == text
    assert echoed(argv("x", values=[text], separator=None, allow_lines=True)[1:]) == [text]
    assert not marker.exists()


def test_a_star_is_a_star(tmp_path: Path) -> None:
    (tmp_path / "private.txt").touch()
    done = subprocess.run(
        ["sh", "-c", f"echo {sketched('*', 'shell')}"], cwd=tmp_path, capture_output=True, check=True
    )
    assert done.stdout == b"private.txt\n"
    done = subprocess.run(
        ["sh", "-c", f"echo {shell_quote('*')}"], cwd=tmp_path, capture_output=True, check=True
    )
    assert done.stdout == b"*\n"


def test_a_value_is_not_an_option(tmp_path: Path) -> None:
    (tmp_path / "keep").mkdir()
    assert sketched("-rf", "shell") == "-rf"
    for use in (
        lambda: sanitize_input("-rf", "shell"),
        lambda: shell_quote("-rf"),
        lambda: argv("rm", values=["-rf"]),
    ):
        with pytest.raises(UnsafeInput, match="begins with '-'"):
            use()
    # The separator makes it a name, should it be allowed.
    done = subprocess.run(
        argv("ls", values=["-a"], allow_leading_dash=True),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "-a" in done.stderr
    assert done.stdout == ""


def test_or_1_is_1_finds_nobody(people: sqlite3.Connection) -> None:
    text = "0 OR 1=1"
    assert sketched(text, "sql") == text
    assert len(people.execute(f"SELECT * FROM people WHERE id = {sketched(text, 'sql')}").fetchall()) == 3
    assert (
        people.execute("SELECT * FROM people WHERE id = ?", (sanitize_input(text, "sql"),)).fetchall() == []
    )


def test_o_brien_keeps_the_apostrophe(people: sqlite3.Connection) -> None:
    assert sketched("O'Brien", "sql") == "OBrien"
    name = sanitize_input("O'Brien", "sql")
    assert people.execute("SELECT id FROM people WHERE name = ?", (name,)).fetchall() == [(2,)]


def test_harmless_text_is_not_mangled() -> None:
    mangled = [text for text in HARMLESS for type in ("sql", "shell", "path") if sketched(text, type) != text]
    assert len(set(mangled)) >= 10
    for type in ("sql", "shell", "path"):
        assert passing(HARMLESS, type) == HARMLESS
