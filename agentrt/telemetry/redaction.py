"""Redaction: no secret leaves with a span, a metric or a log line, whoever made it.

Two things are replaced by "[redacted]": values that were registered (each secret that was fetched), in the guises in
which they travel, and what looks like a secret (see `secret_shapes`). Redaction comes before anything is cut to
size: half a secret would no longer be found.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from agentrt.errors import ConfigError
from agentrt.telemetry.caps import plain
from agentrt.telemetry.secret_shapes import MARK, Shapes
from agentrt.telemetry.secret_values import SecretValues
from agentrt.telemetry.signals import Attributes, Link, LogLine, Metric, Point, Span, SpanEvent

__all__ = ["MARK", "Redactor", "names_a_secret"]

_SHORT = 100  # characters of a text that is worth remembering
_REMEMBERED = 4096  # texts, and keys
_NEITHER = frozenset((bool, int, float, type(None)))


class Redactor:
    """Takes secrets out of text. One per runtime; any thread may use it.

    `patterns`: regular expressions, whose matches are replaced too. They run on every text: one that backtracks
    without bound costs that much. `keys`: more names of secrets ("iban"), for attributes and for assignments in text.
    `ConfigError` for an expression that is none or that matches nothing at all, and for a key without a letter.
    """

    def __init__(self, *, patterns: Sequence[str] = (), keys: Sequence[str] = ()) -> None:
        self._patterns = tuple(_compiled(pattern) for pattern in _list("patterns", patterns))
        self._keys = tuple(_words_of_key(key) for key in _list("keys", keys))
        self._shapes = Shapes(keys)
        self._values = SecretValues()
        self.generation = object()
        """Another one after each value that was registered: what was found clean before may not be."""
        # Replaced, never emptied: what a thread still adds to the old ones is about the old values.
        self._clean: set[str] = set()
        self._rules: dict[str, tuple[str, bool]] = {}

    def __len__(self) -> int:
        """The number of registered values."""
        return len(self._values)

    def add(self, value: str, /) -> None:
        """Register a secret's value. The newest 10,000 are kept; one that was replaced by rotation stays registered.

        Blanks around it do not count. Of a value of several lines each line of at least 8 characters is looked for,
        too. Values shorter than 6 characters are ignored: they would make ordinary text unreadable, and the places
        would tell them.
        """
        if self._values.add(value):
            self._clean = set()
            self._rules = {}
            self.generation = object()

    def after_fork(self) -> None:
        """In a forked child: as if no other thread had been at it."""
        self._values.after_fork()

    def text(self, text: str, /) -> str:
        """`text` without secrets; the same object if it has none."""
        clean = self._clean
        if text in clean:
            return text
        redacted = self._without_patterns(self._shapes.clean(self._values.clean(text)))
        if redacted != text:
            return redacted
        if len(text) <= _SHORT:
            if len(clean) >= _REMEMBERED and clean is self._clean:
                self._clean = set()
            else:
                clean.add(text)
        return text

    def known(self, text: str, /) -> str:
        """`text` without registered values and matches of the patterns, whatever else may look like a secret: for a
        person who reads what failed, and whom a wrong guess would keep from understanding it."""
        return self._without_patterns(self._values.clean(text))

    def value(self, value: object, /) -> Any:
        """Any Python value as a tree of plain ones (see `caps.plain`) without secrets; keys count as in `attributes`.

        For what is to become JSON: `json_within(redactor.value(messages), limit)`.
        """
        if type(value) is str:
            return self.text(value)
        return self._tree(plain(value))

    def attributes(self, attributes: Mapping[str, Any], /) -> Attributes:
        """The attributes without secrets; the same object if there is none in it.

        The value of a key that names a secret is replaced whatever it is; other values are searched, however deep,
        and so are the keys. Keys that only count tokens are no names of secrets, nor is any of `agentrt.`.
        """
        changed: dict[str, tuple[str, Any]] = {}
        rules, clean = self._rules, self._clean
        for key, value in attributes.items():
            name, is_secret = rules.get(key) or self._rule(key)
            if is_secret:
                if value != MARK:
                    changed[key] = (name, MARK)
                continue
            kind = type(value)
            if kind is str:
                found: Any = value if value in clean else self.text(value)
            elif kind in _NEITHER:
                found = value
            else:
                found = self._other(value)
            if found is not value or name is not key:
                changed[key] = (name, found)
        if not changed:
            return attributes if isinstance(attributes, dict) else dict(attributes)
        return dict(changed.get(key) or (key, value) for key, value in attributes.items())

    def span(self, span: Span, /) -> Span:
        """The span without secrets in its name, attributes, events, links and message; the same one if unchanged."""
        name = self.text(span.name)
        message = self.text(span.message) if span.message else span.message
        attributes = self.attributes(span.attributes)
        events = _each(span.events, self._event) if span.events else span.events
        links = _each(span.links, self._link) if span.links else span.links
        if (
            name is span.name
            and message is span.message
            and attributes is span.attributes
            and events is span.events
            and links is span.links
        ):
            return span
        return replace(span, name=name, message=message, attributes=attributes, events=events, links=links)

    def line(self, line: LogLine, /) -> LogLine:
        """The log line without secrets in its message, attributes and traceback; the same one if unchanged."""
        message = self.text(line.message)
        attributes = self.attributes(line.attributes) if line.attributes else line.attributes
        exception = self.text(line.exception) if line.exception else line.exception
        if message is line.message and attributes is line.attributes and exception is line.exception:
            return line
        return replace(line, message=message, attributes=attributes, exception=exception)

    def metric(self, metric: Metric, /) -> Metric:
        """The metric without secrets in the attributes of its points; the same one if unchanged."""
        points = _each(metric.points, self._point)
        return metric if points is metric.points else replace(metric, points=points)

    def _without_patterns(self, text: str) -> str:
        for pattern in self._patterns:
            text = pattern.sub(MARK, text)
        return text

    def _event(self, event: SpanEvent) -> SpanEvent:
        name = self.text(event.name)
        attributes = self.attributes(event.attributes) if event.attributes else event.attributes
        if name is event.name and attributes is event.attributes:
            return event
        return replace(event, name=name, attributes=attributes)

    def _link(self, link: Link) -> Link:
        attributes = self.attributes(link.attributes) if link.attributes else link.attributes
        return link if attributes is link.attributes else replace(link, attributes=attributes)

    def _point(self, point: Point) -> Point:
        attributes = self.attributes(point.attributes) if point.attributes else point.attributes
        return point if attributes is point.attributes else replace(point, attributes=attributes)

    def _rule(self, key: str) -> tuple[str, bool]:
        """The key as it may be shown, and whether it names a secret."""
        rules = self._rules
        rule = (self.text(key), names_a_secret(key, self._keys))
        if len(rules) >= _REMEMBERED:
            self._rules = {}
        else:
            rules[key] = rule
        return rule

    def _other(self, value: Any) -> Any:
        """A value that is neither text nor a number: the same object if nothing had to change."""
        found = self.value(value)
        return value if type(value) in (list, dict) and found == value else found

    def _tree(self, tree: Any) -> Any:
        kind = type(tree)
        if kind is str:
            return self.text(tree)
        if kind is list:
            return [self._tree(item) for item in tree]
        if kind is dict:
            return {
                name: MARK if is_secret else self._tree(value)
                for key, value in tree.items()
                for name, is_secret in (self._rules.get(key) or self._rule(key),)
            }
        return tree


def _each(items: tuple[Any, ...], clean: Any) -> tuple[Any, ...]:
    cleaned = tuple(clean(item) for item in items)
    return items if all(new is old for new, old in zip(cleaned, items, strict=True)) else cleaned


# --- names of secrets ----------------------------------------------------------------------------------

Words = tuple[str, ...]
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_BETWEEN = re.compile(r"[^A-Za-z0-9]+")
_ALONE = frozenset(
    [
        "password",
        "passwords",
        "passwd",
        "pwd",
        "passphrase",
        "passcode",
        "secret",
        "secrets",
        "authorization",
        "cookie",
        "cookies",
        "credential",
        "credentials",
        "apikey",
        "apikeys",
        "privatekey",
        "secretkey",
        "accesskey",
        "connectionstring",
        "jwt",
    ]
)
_BEFORE_KEY = frozenset(
    [
        "api",
        "access",
        "account",
        "private",
        "secret",
        "shared",
        "signing",
        "encryption",
        "subscription",
        "master",
    ]
)
_COUNTING = frozenset(
    [
        "max",
        "min",
        "total",
        "input",
        "output",
        "prompt",
        "completion",
        "cached",
        "reasoning",
        "per",
        "first",
        "last",
    ]
)
_AFTER_TOKEN = frozenset(("value", "secret", "string"))
# What only describes a secret: its text is searched all the same.
_ABOUT = frozenset(
    [
        "arn",
        "name",
        "type",
        "provider",
        "ref",
        "version",
        "count",
        "length",
        "file",
        "path",
        "url",
        "uri",
        "endpoint",
        "expires",
        "expiry",
    ]
)
_OURS = "agentrt."
_NEVER = frozenset(("gen_ai.token.type", "gen_ai.request.max_tokens"))
_USAGE = "gen_ai.usage."


def names_a_secret(key: str, more: Iterable[Words] = ()) -> bool:
    """Whether the value of an attribute with this name is a secret. `more`: names beside the known ones, as words."""
    if key.startswith((_OURS, _USAGE)) or key in _NEVER:
        return False
    words = _words(key)
    if not words:
        return False
    for name in more:
        if any(words[place : place + len(name)] == name for place in range(len(words))):
            return True
    if words[-1] in _ABOUT:
        return False
    for place, word in enumerate(words):
        before = words[place - 1] if place else ""
        if word in _ALONE:
            return True
        if word in ("key", "keys") and before in _BEFORE_KEY:
            return True
        if word == "string" and before == "connection":
            return True
        if word == "token" and before not in _COUNTING:
            after = words[place + 1] if place + 1 < len(words) else ""
            if not after or after in _AFTER_TOKEN or after.isdigit():
                return True
    return False


def _words(key: str) -> Words:
    """The lower-case words of a name, however it is written: dots, dashes, underscores, camel case."""
    return tuple(word.lower() for word in _BETWEEN.split(_CAMEL.sub(" ", key)) if word)


# --- options -------------------------------------------------------------------------------------------


def _list(name: str, value: Sequence[str]) -> Sequence[str]:
    if isinstance(value, str) or not all(isinstance(item, str) for item in value):
        raise ConfigError(f"{name} must be a list of texts, not {value!r}")
    return value


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"patterns: {pattern!r} is not a regular expression: {error}") from error
    if compiled.search("") is not None:
        raise ConfigError(f"patterns: {pattern!r} matches the empty text, and so would redact everywhere")
    return compiled


def _words_of_key(key: str) -> Words:
    words = _words(key)
    if not words:
        raise ConfigError(f"keys must be names with a letter or a digit, not {key!r}")
    return words
