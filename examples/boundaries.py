"""Text from outside goes to a database, a program and a file; what does not belong there is refused, nothing is edited.

python examples/boundaries.py      (the last part needs: pip install 'agentrt[security]')
"""

import sqlite3
import subprocess
import sys

from agentrt.security.sanitize import UnsafeInput, sanitize_input
from agentrt.security.shell import argv
from agentrt.security.sql import sql_guard, sql_identifier

shop = sqlite3.connect(":memory:")
shop.executescript("CREATE TABLE customers (name TEXT); INSERT INTO customers VALUES ('O''Brien'), ('Ada');")


def find(name: str, order_by: str) -> list[tuple[str]]:
    value = sanitize_input(name, "sql")  # as it is, or an error
    column = sql_identifier(order_by, "sqlite")
    return shop.execute(f"SELECT name FROM customers WHERE name = ? ORDER BY {column}", (value,)).fetchall()


def echo(text: str) -> str:
    program = "import sys; print(sys.argv[1])"
    command = argv(sys.executable, "-c", program, values=[text], separator=None)
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def answer(sql: str) -> list[tuple[object, ...]]:
    """For SQL that a model wrote."""
    return shop.execute(sql_guard(sql, dialect="sqlite", tables=["customers"], max_rows=100)).fetchall()


def judged(path: str) -> str:
    try:
        sanitize_input(path, "path")
    except UnsafeInput as error:
        return f"refused ({error.rule}): {error}"
    return "passed"


if __name__ == "__main__":
    print(find("O'Brien", "name"), find("' OR 1=1 --", "name"))
    print(echo("a && b; $(touch owned)"))
    print(judged("see you.."))
    print(judged("../../etc/passwd"))
    print(answer("SELECT count(*) FROM customers"))
    try:
        answer("SELECT load_extension('x')")
    except UnsafeInput as error:
        print(error)
