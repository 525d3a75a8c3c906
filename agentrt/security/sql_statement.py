"""`sql_guard`: SQL that a model wrote passes if it is one statement that only reads, and is given back rewritten.

The statement is parsed by sqlglot, every node of its tree must be of a kind that is allowed, and the statement that is
returned is written anew from that tree, without comments. So the database gets what was checked: what a parser
overlooks in a text (a comment that MySQL runs, an odd quote, a keyword taken for an alias) is not in the result. The
result is parsed and checked once more, and must be written the same again.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any, TypeAlias

from agentrt import options
from agentrt.errors import ConfigError
from agentrt.security.sanitize import UnsafeInput
from agentrt.security.sql_functions import (
    FUNCTIONS,
    NODES,
    QUERY_FOLLOWS,
    QUERY_STARTS,
    SELECT_PARTS,
    TABLE_PARTS,
    in_catalog,
)

__all__ = ["Guard"]

Node: TypeAlias = Any  # of sqlglot's tree; where its classes live differs between versions

_WHAT = "the statement"
_DIALECTS = {"mssql": "tsql"}  # where sqlglot has another name
_DEPTH = 60
_OPENING = ("L_PAREN", "L_BRACKET", "L_BRACE", "CASE")
_CLOSING = ("R_PAREN", "R_BRACKET", "R_BRACE", "END")
_PREFIXES = ("NOT", "DASH", "PLUS", "TILDE", "EXCLAMATION", "DAT", "PIPE_SLASH", "DPIPE_SLASH", "BANG")
_ODD = re.compile(r"[^\w\x00-\x7f]")
_INNER = "has something else than a SELECT in its WITH, or behind it"
# A common table expression without the word RECURSIVE that names itself means itself, not a table.
_SELF_REFERENCE = ("mssql", "sqlite")


class Guard:
    """The rules of one call of `sql_guard`."""

    def __init__(
        self,
        *,
        dialect: str,
        tables: Collection[str | Sequence[str]] | None,
        functions: Collection[str],
        max_rows: int | None,
    ) -> None:
        self._glot = _import_sqlglot()
        self._dialect = options.choice("dialect", dialect, tuple(FUNCTIONS))
        for name, value in (("tables", tables), ("functions", functions)):
            if isinstance(value, str):
                raise ConfigError(f"{name} must be a list of names, not one text: write [{value[:63]!r}]")
        self._tables = None if tables is None else {self._parts_of(table) for table in tables}
        self._functions = FUNCTIONS[dialect] | {name.lower() for name in functions}
        self._max_rows = None if max_rows is None else options.count("max_rows", max_rows)

    def check(self, sql: str) -> str:
        """The statement to execute."""
        try:
            tree = self._parsed(sql)
            self._check_tree(tree, sql)
            if self._max_rows is not None:
                self._limit(tree, self._max_rows)
            if self._dialect == "mssql":
                # There a keyword in the wrong place begins another statement, without any semicolon.
                for name in tree.find_all(self._glot.exp.Identifier):
                    name.set("quoted", True)
            text = self._rendered(tree)
            again = self._parsed(text)
            self._check_tree(again, text)
            if self._rendered(again) != text:
                raise _refusal(
                    "rendering", "cannot be written anew without a change; write it in a simpler way"
                )
        except RecursionError:
            pass
        else:
            return text
        raise UnsafeInput(f"{_WHAT} is nested too deeply; write it in a simpler way", rule="depth")

    # ------------------------------------------------------------------------------------------- text and tree
    def _parsed(self, sql: str) -> Node:
        self._check_tokens(sql)
        place = ""
        try:
            trees = self._glot.parse(sql, dialect=self._glot_dialect)
        except RecursionError:
            raise
        except Exception as error:
            # It is fed with anything: whatever it fails with, it did not understand the text.
            place = _place_of(error)
        else:
            if len(trees) == 1 and trees[0] is not None:
                return trees[0]
        # Not `from` the parser's error: that one quotes the text.
        raise UnsafeInput(
            f"{_WHAT} is not understood as {self._dialect}{place}; write it anew", rule="syntax"
        )

    def _check_tokens(self, sql: str) -> None:
        """Before the parser: it would take what it does not know for a command, and log the text of it."""
        tokens: list[Any] | None = None
        try:
            tokens = self._glot.tokenize(sql, read=self._glot_dialect)
        except self._glot.errors.SqlglotError:
            pass  # as in _rendered
        if tokens is None:
            raise _refusal("syntax", "has a quote or comment without an end, or something that is no SQL")
        kinds = [token.token_type.name for token in tokens]
        while kinds and kinds[-1] == "SEMICOLON":
            kinds.pop()
        if "SEMICOLON" in kinds:
            offset = tokens[kinds.index("SEMICOLON")].start
            raise _refusal(
                "statement", f"must be the only one, and another follows at character {offset}", offset
            )
        if next((kind for kind in kinds if kind != "L_PAREN"), "") not in ("SELECT", "WITH"):
            raise _refusal("statement", "must be a SELECT, alone or after WITH", 0)
        _check_depth(kinds)
        _check_inner(tokens)
        _check_names(tokens)
        if self._dialect == "mysql":
            for token in tokens:
                if any(comment.startswith(("!", "M!")) for comment in token.comments):
                    raise _refusal(
                        "comment", f"has a comment that MySQL runs, near character {token.start}", token.start
                    )

    def _rendered(self, tree: Node) -> str:
        try:
            text: str = tree.sql(
                dialect=self._glot_dialect,
                comments=False,
                normalize_functions=False,
                unsupported_level=self._glot.ErrorLevel.RAISE,
            )
            return text
        except RecursionError:
            raise
        except Exception:
            pass  # ours is not raised in here, because theirs quotes the text
        raise _refusal(
            "rendering", f"has something that {self._dialect} does not know; write it in a simpler way"
        )

    @property
    def _glot_dialect(self) -> str:
        return _DIALECTS.get(self._dialect, self._dialect)

    # --------------------------------------------------------------------------------------------- every node
    def _check_tree(self, tree: Node, sql: str) -> None:
        exp = self._glot.exp
        if not isinstance(tree, exp.Select | exp.SetOperation | exp.Subquery):
            raise _refusal("statement", "must be a SELECT, alone or after WITH", 0)
        # Each node with the names of the common table expressions that are visible to it: on a stack of our own,
        # because a chain of a thousand ORs is as deep.
        stack: list[tuple[Node, frozenset[str]]] = [(tree, frozenset())]
        while stack:
            node, visible = stack.pop()
            self._check_node(node, visible, sql)
            with_ = node.args.get("with_") or node.args.get("with")
            if isinstance(with_, exp.With):
                for cte in with_.expressions:
                    name = self._folded(cte.args["alias"].this)
                    itself = with_.recursive or self._dialect in _SELF_REFERENCE
                    stack.append((cte, visible | {name} if itself else visible))
                    visible |= {name}
            elif isinstance(node, exp.With) and node.arg_key.rstrip("_") != "with":
                raise _refusal("clause", "has WITH in a place where it is not known", _offset(node))
            # The rest sees all expressions of the WITH, which are on the stack already.
            stack.extend(
                (child, visible)
                for child in node.iter_expressions()
                if not (isinstance(child, exp.CTE) and isinstance(node, exp.With))
            )

    def _check_node(self, node: Node, visible: frozenset[str], sql: str) -> None:
        exp = self._glot.exp
        kind = type(node).__name__
        if isinstance(node, exp.CTE) and not isinstance(node.this, exp.Query | exp.Values):
            raise _refusal("statement", _INNER, _offset(node))
        if isinstance(node, exp.Anonymous):
            self._check_function(node, node.name, [node.name], quoted=isinstance(node.this, exp.Identifier))
        elif kind in NODES:
            pass
        elif isinstance(node, exp.Func):
            self._check_function(node, _written(node, sql), node.sql_names())
        else:
            raise _refusal(
                "clause", f"has {_words(kind)}, which is not allowed where data are only read", _offset(node)
            )
        if isinstance(node, exp.Select):
            _check_parts(node, SELECT_PARTS)
        elif isinstance(node, exp.Table):
            _check_parts(node, TABLE_PARTS)
            self._check_table(node, visible)
        elif isinstance(node, exp.DataType) and node.this == exp.DataType.Type.USERDEFINED:
            raise _refusal("type", "converts to a type that is not a common one of SQL", _offset(node))

    def _check_function(
        self, node: Node, written: str, known_as: Sequence[str], *, quoted: bool = False
    ) -> None:
        """One of its names must be allowed; one that is called with its schema, by that full name."""
        exp = self._glot.exp
        parent, child = node.parent, node
        schema: list[str] = []
        if isinstance(parent, exp.Table) and parent.this is node:
            schema = [part.name for part in (parent.args.get("catalog"), parent.args.get("db")) if part]
        while isinstance(parent, exp.Dot) and parent.expression is child:
            # Only the function itself: `(f(x)).field` has it on the other side.
            schema.insert(0, parent.this.sql(dialect=self._glot_dialect))
            parent, child = parent.parent, parent
        names = [".".join((*schema, name)).lower() for name in (written, *known_as)]
        # A quoted name is another function than the one of the list if it has capitals.
        if self._functions.isdisjoint(names) or (quoted and not schema):
            raise _refusal(
                "function",
                f"calls the function {_shown(names[0])}, which is not among those allowed; see functions=",
                _offset(node),
            )

    def _check_table(self, table: Node, visible: frozenset[str]) -> None:
        exp = self._glot.exp
        if isinstance(table.this, exp.Func):
            return  # a function that makes a table is checked as a function
        if not isinstance(table.this, exp.Identifier):
            raise _refusal(
                "table", "reads from something that is not a table of at most three names", _offset(table)
            )
        parts = tuple(
            self._folded(part)
            for part in (table.args.get("catalog"), table.args.get("db"), table.this)
            if part is not None and part.name
        )
        if len(parts) == 1 and parts[0] in visible:
            return
        if self._tables is not None:
            if parts not in self._tables:
                raise _refusal(
                    "table",
                    f"reads {_shown('.'.join(parts))}, which is not among the tables allowed",
                    _offset(table),
                )
        elif in_catalog(parts, self._dialect):
            raise _refusal(
                "catalog",
                f"reads {_shown('.'.join(parts))}, which belongs to the database itself",
                _offset(table),
            )

    def _parts_of(self, table: str | Sequence[str]) -> tuple[str, ...]:
        parts = tuple(table.split(".")) if isinstance(table, str) else tuple(table)
        if not 1 <= len(parts) <= 3 or not all(parts):
            raise ConfigError(f"tables: {table!r} must be a name of one to three parts, like 'schema.table'")
        return tuple(part.lower() for part in parts) if self._dialect in ("sqlite", "mssql") else parts

    def _folded(self, name: Node) -> str:
        """A name as the database stores it: where it is not sure, as it is written."""
        text: str = name.name
        folds = self._dialect in ("sqlite", "mssql") or (
            self._dialect == "postgres" and not name.args.get("quoted")
        )
        return text.lower() if folds else text

    # --------------------------------------------------------------------------------------------------- rows
    def _limit(self, tree: Node, rows: int) -> None:
        """Sets or lowers the LIMIT of the outermost query."""
        exp = self._glot.exp
        limit = tree.args.get("limit")
        if limit is None:
            tree.set("limit", exp.Limit(expression=exp.Literal.number(rows)))
            return
        given = limit.expression
        if isinstance(limit, exp.Fetch):
            given = limit.args.get("count") or exp.Literal.number(1)
        options_ = limit.args.get("limit_options")
        if options_ is not None and (options_.args.get("percent") or options_.args.get("with_ties")):
            raise _refusal(
                "rows", "must limit its rows by a number, not by PERCENT or WITH TIES", _offset(tree)
            )
        if isinstance(given, exp.Paren):
            given = given.this
        if not isinstance(given, exp.Literal) or given.is_string or not given.this.isdigit():
            raise _refusal(
                "rows", f"must limit its rows by a number up to {rows}, not by an expression", _offset(tree)
            )
        if int(given.this) > rows:
            given.replace(exp.Literal.number(rows))


def _check_depth(kinds: Sequence[str]) -> None:
    """The parser recurses for every bracket and prefix; compiled, it would overflow the stack of C."""
    depth = prefixes = subscripts = 0
    before = ""
    for kind in kinds:
        depth += (kind in _OPENING) - (kind in _CLOSING)
        prefixes = prefixes + 1 if kind in _PREFIXES else 0
        # a[1][1]...: each subscript makes the tree one level deeper, and all of them take time squared.
        subscripts += before == "R_BRACKET" and kind == "L_BRACKET"
        if depth + prefixes > _DEPTH or subscripts > _DEPTH:
            raise RecursionError
        before = kind


def _check_inner(tokens: Sequence[Any]) -> None:
    """What stands in the brackets of a WITH and behind them begins as a query does.

    Else the parser would take it for a command, and log the text of it.
    """
    kinds = [token.token_type.name for token in tokens]
    opened: list[bool] = []  # for each open bracket, whether it is one of AS (...)
    for place, kind in enumerate(kinds):
        following = kinds[place + 1] if place + 1 < len(kinds) else ""
        if kind == "L_PAREN":
            inner = _follows_as(tokens, place) or (kinds[place - 1 : place] == ["L_PAREN"] and opened[-1])
            opened.append(inner)
            wrong = inner and following not in QUERY_STARTS
        elif kind == "R_PAREN":
            wrong = bool(opened) and opened.pop() and following not in QUERY_FOLLOWS
        else:
            continue
        if wrong:
            raise _refusal("statement", _INNER, tokens[place].start)


def _follows_as(tokens: Sequence[Any], place: int) -> bool:
    """Whether AS, AS MATERIALIZED or AS NOT MATERIALIZED stands before `place`."""
    place -= 1
    if place >= 0 and tokens[place].text.upper() == "MATERIALIZED":
        place -= 1
        if place >= 0 and tokens[place].token_type.name == "NOT":
            place -= 1
    return place >= 0 and bool(tokens[place].token_type.name == "ALIAS")


def _check_names(tokens: Sequence[Any]) -> None:
    """A space that is not ASCII would be part of a name here, and separates names for some databases."""
    for token in tokens:
        kind = token.token_type.name
        odd = None if kind == "IDENTIFIER" or kind.endswith("STRING") else _ODD.search(token.text)
        if odd is not None:
            code = f"U+{ord(odd.group()):04X}"
            raise _refusal(
                "character", f"has {code} outside of quotes; quote the name that it is in", token.start
            )


def _check_parts(node: Node, allowed: frozenset[str]) -> None:
    for part, value in node.args.items():
        # Since version 28 sqlglot writes `from_` and `with_`.
        if value and part.rstrip("_") not in allowed:
            raise _refusal(
                "clause", f"has {_words(part)}, which is not allowed where data are only read", _offset(node)
            )


def _refusal(rule: str, why: str, offset: int | None = None) -> UnsafeInput:
    return UnsafeInput(f"{_WHAT} {why}", rule=rule, offset=offset)


def _offset(node: Node) -> int | None:
    """Where it begins in the text: only names know."""
    for inner in node.walk():
        if "start" in inner.meta:
            return int(inner.meta["start"])
    return None


def _written(function: Node, sql: str) -> str:
    """Its name in the text, where it has one there."""
    if "start" not in function.meta:
        return str(function.sql_name())
    return sql[function.meta["start"] : function.meta["end"] + 1]


def _place_of(error: Any) -> str:
    for found in getattr(error, "errors", ()):
        if found.get("line"):
            return f" at line {found['line']}, column {found['col']}"
    return ""


def _shown(name: str) -> str:
    """A name out of the statement, for a message."""
    return ascii(name if len(name) <= 63 else name[:60] + "...")


def _words(name: str) -> str:
    spaced = "".join(f" {letter}" if letter.isupper() else letter for letter in name)
    return spaced.replace("_", " ").strip().upper()


def _import_sqlglot() -> Any:
    try:
        import sqlglot
    except ImportError as error:
        raise ConfigError("sql_guard needs sqlglot: pip install 'agentrt[security]'") from error
    return sqlglot
