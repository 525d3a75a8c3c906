"""Reading signatures and docstrings."""

from __future__ import annotations

import typing
from typing import TYPE_CHECKING, Annotated, Any

import pytest

from agentrt.errors import ConfigError
from agentrt.signature import REQUIRED, Signature, parse_docstring, read_signature

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agentrt.context import Context


def read(function: Callable[..., Any], **options: Any) -> Signature:
    return read_signature(function, tool="t", scope={}, **options)


def annotations(function: Callable[..., Any], **options: Any) -> dict[str, Any]:
    return {parameter.name: parameter.annotation for parameter in read(function, **options).parameters}


def test_postponed_annotations_are_resolved() -> None:
    def search(query: str, limit: int = 5) -> Path: ...

    signature = read(search)
    assert [(p.name, p.annotation, p.default) for p in signature.parameters] == [
        ("query", str, REQUIRED),
        ("limit", int, 5),
    ]


def test_an_unresolvable_return_annotation_does_not_matter() -> None:
    def search(query: str) -> Nowhere: ...  # type: ignore[name-defined]  # noqa: F821

    assert annotations(search) == {"query": str}


def test_names_of_the_closure_are_found() -> None:
    class Local: ...

    def search(query: Local) -> str:
        return repr(Local)

    assert annotations(search) == {"query": Local}


def test_names_of_the_enclosing_function_are_found_through_the_scope() -> None:
    class Local: ...

    def search(query: Local) -> None: ...

    signature = read_signature(search, tool="t", scope=locals())
    assert signature.parameters[0].annotation is Local


def test_a_name_that_cannot_be_resolved_names_tool_parameter_and_annotation() -> None:
    def search(where: Path) -> None: ...

    with pytest.raises(ConfigError, match=r"tool 't'.*'where', 'Path'.*TYPE_CHECKING"):
        read(search)


def test_a_default_of_none_makes_a_parameter_optional() -> None:
    def search(
        query: str = None,  # type: ignore[assignment]  # noqa: RUF013
        other: str | None = None,
        anything: Any = None,
    ) -> None: ...

    assert annotations(search) == {"query": typing.Optional[str], "other": str | None, "anything": Any}  # noqa: UP045


def test_annotated_gives_the_description_and_keeps_the_rest() -> None:
    def search(query: Annotated[str, "what to look for", 5], limit: Annotated[int, " how many "] = 5) -> None:
        """Search.

        Args:
            limit: overridden
        """

    query, limit = read(search).parameters
    assert (query.annotation, query.description) == (Annotated[str, 5], "what to look for")
    assert (limit.annotation, limit.description) == (int, "how many")


def test_a_description_inside_optional_is_found() -> None:
    def search(query: Annotated[str, "what"] | None = None) -> None: ...

    assert read(search).parameters[0].description == "what"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def f(*words: str): ...", r"\*words has no place.*list"),
        ("def f(**words: str): ...", r"\*\*words has no fixed names.*dict"),
        ("def f(word): ...", r"'word' has no annotation"),
        ("def f(größe: int): ...", r"'größe' has a name that model providers refuse"),
        (f"def f({'a' * 65}: int): ...", r"a name that model providers refuse"),
        ("def f(ctx, x: 'Context'): ...", r"'ctx' and 'x' would both get the context"),
    ],
)
def test_what_no_model_could_fill_in_is_refused(source: str, message: str) -> None:
    namespace: dict[str, Any] = {}
    exec(source, namespace)
    with pytest.raises(ConfigError, match=message) as caught:
        read(namespace["f"])
    assert str(caught.value).startswith("tool 't': ")


def test_the_context_is_found_by_name_whatever_its_annotation() -> None:
    def search(query: str, ctx: Any) -> None: ...

    def bare(ctx, query: str) -> None: ...  # type: ignore[no-untyped-def]

    def spelled_out(context, query: str) -> None: ...  # type: ignore[no-untyped-def]

    assert read(search).context == read(bare).context == "ctx"
    assert read(spelled_out).context == "context"
    assert annotations(search) == annotations(bare) == annotations(spelled_out) == {"query": str}


def test_a_parameter_named_context_with_a_type_of_its_own_is_for_the_model() -> None:
    def answer(question: str, context: str) -> None: ...

    assert read(answer).context is None
    assert annotations(answer) == {"question": str, "context": str}


def test_the_context_is_found_by_its_class() -> None:
    from agentrt.context import Context as Imported

    class Mine(Imported): ...

    def plain(query: str, where: Imported) -> None: ...

    def optional(query: str, where: Imported | None = None) -> None: ...

    def annotated(query: str, where: Annotated[Imported, "run"]) -> None: ...

    def derived(query: str, where: Mine) -> None: ...

    for function in (plain, optional, annotated, derived):
        signature = read_signature(function, tool="t", scope=locals())
        assert signature.context == "where"
        assert [parameter.name for parameter in signature.parameters] == ["query"]


def test_a_context_imported_for_type_checkers_only_is_found() -> None:
    def search(query: str, where: Context | None = None) -> None: ...

    assert read(search).context == "where"


def test_a_foreign_context_class_is_an_ordinary_annotation() -> None:
    class Context: ...

    def search(where: Context) -> None: ...

    assert read_signature(search, tool="t", scope=locals()).context is None


def test_self_is_left_out_when_asked() -> None:
    class Agent:
        def search(self, query: str) -> None: ...

    assert annotations(Agent.search, skip_first=True) == {"query": str}


def test_positional_parameters_are_listed_in_order() -> None:
    def search(ctx: Any, query: str, /, limit: int) -> None: ...

    assert read(search).positional == ("ctx", "query")


def test_a_method_that_is_bound_already_is_read_without_self() -> None:
    class Agent:
        def search(self, query: str) -> None: ...

    assert annotations(Agent().search) == {"query": str}


# --- docstrings ----------------------------------------------------------------------------------------

NAMES = ("query", "limit", "where")


def test_no_docstring() -> None:
    assert parse_docstring(None, NAMES) == ("", {})


def test_prose_alone() -> None:
    assert parse_docstring("Search.\n\n  More: here.\n", NAMES) == ("Search.\n\nMore: here.", {})


def test_google_style() -> None:
    text = """Search the web.

    Takes a while.

    Args:
        query: What to look for,
            in plain words.
        limit (int, optional): How many: at most.
        unknown: not a parameter

        where:
            The place.

    Returns:
        query: a list

    Example:
        search("x")
    """
    assert parse_docstring(text, NAMES) == (
        "Search the web.\n\nTakes a while.",
        {"query": "What to look for, in plain words.", "limit": "How many: at most.", "where": "The place."},
    )


def test_google_style_without_parameters_ends_at_returns() -> None:
    assert parse_docstring("Search.\n\nReturns:\n    A list.\n", NAMES) == ("Search.", {})


def test_numpy_style() -> None:
    text = """Search the web.

    Parameters
    ----------
    query : str
        What to look for,
        in plain words.
    limit, where : int, optional
        Both.

    Returns
    -------
    list
        query
    """
    assert parse_docstring(text, NAMES) == (
        "Search the web.",
        {"query": "What to look for, in plain words.", "limit": "Both.", "where": "Both."},
    )


def test_sphinx_style() -> None:
    text = """Search the web.

    :param query: What to look for,
        in plain words.
    :param int limit: How many.
    :type limit: int
    :returns: a list
    """
    assert parse_docstring(text, NAMES) == (
        "Search the web.",
        {"query": "What to look for, in plain words.", "limit": "How many."},
    )


def test_prose_that_looks_like_a_section_stays_prose() -> None:
    text = "Query: https://example.org\nlimit: no section, no parameter"
    assert parse_docstring(text, NAMES) == (text, {})
