r"""What secrets look like where nobody told us their values: keys of well-known services, headers, assignments.

Each family has a cheap test that ordinary text fails; only a text that passes it meets the exact expression. Every
expression takes time proportional to the text: repetitions are possessive (`++`) or bounded, and a failed try never
reads further than a bound, or than a place where no other try begins.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Collection

__all__ = ["MARK", "Shapes"]

MARK = "[redacted]"
"""Stands in the place of a secret."""

# --- keys that tell by their beginning -----------------------------------------------------------------

# A character that was quoted for a URL, or escaped in JSON or a `repr`, ends with a letter or digit that is no part of
# what follows: "%20", "\n", "\u00e9", "\x1b".
_QUOTES = (r"%[0-9A-Fa-f]{2}", r"\\[bfnrt]", r"\\u[0-9A-Fa-f]{4}", r"\\x[0-9A-Fa-f]{2}")
_AFTER_QUOTED = "|".join(f"(?<={quoted})" for quoted in _QUOTES)


def _begins(letters: str) -> str:
    """A place where something may begin, with one of `letters`, which are looked at first: they are seldom there."""
    return f"(?=[{letters}])(?:(?<![A-Za-z0-9])|{_AFTER_QUOTED})"


_BEGINNINGS = (
    r"sk-(?=[\w-]{0,64}?\d)[\w-]{16,}+",  # OpenAI, Anthropic and many others
    r"(?:gh[pousr]_|github_pat_)\w{20,}+",
    r"gl(?:pat|ptt|rt|dt|cbt|ft|imt|soat|oas|agent)-[\w.-]{16,}+",  # GitLab
    r"(?:xox[a-z]|xapp)-[\w-]{10,}+",  # Slack
    r"xai-\w{20,}+",
    r"GOCSPX-[\w-]{20,}+",  # Google OAuth clients
    r"pypi-[\w-]{40,}+",
    r"[srp]k_(?:live|test)_\w{10,}+",  # Stripe
    r"whsec_[\w+/=]{16,}+",
    r"(?:hf|gsk|npm)_[A-Za-z0-9]{20,}+",  # Hugging Face, Groq, npm
)
_BEGINNING = re.compile(_begins("sgxGprwhn") + "(?:" + "|".join(_BEGINNINGS) + ")")
# A literal first character lets the engine use memchr: a text without dashes costs nothing.
_DASH = re.compile(
    r"-(?:(?<=\bsk-)|(?<=_sk-)|"
    + "".join(f"(?<={quoted}sk-)|" for quoted in _QUOTES)
    + r"(?<=gl[a-z][a-z]-)|(?<=[a-z]{2}(?:pat|ptt|cbt|imt|oas)-)|(?<=soat-)|(?<=agent-)"
    r"|(?<=xox[a-z]-)|(?<=xapp-)|(?<=xai-)|(?<=CSPX-)|(?<=pypi-))"
)
_UNDERSCORE = re.compile(
    r"_(?:(?<=gh[pousr]_)|(?<=_pat_)|(?<=_live_)|(?<=_test_)|(?<=whsec_)|(?<=hf_)|(?<=gsk_)|(?<=npm_))"
)
_AWS = re.compile(_begins("A") + r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16,}+")
_GOOGLE = re.compile(r"AIza[\w-]{30,}+|" + _begins("y") + r"ya29\.[\w.-]{20,}+")
# Vault and OpenBao: a service token of OpenBao is 24 letters and digits after "s.", which a method's name could be, but
# for a digit or two capitals in a row.
_TOKEN_DOT = re.compile(r"\.(?<=[sbr]\.)(?=[\w-]{24})")
_VAULT = re.compile(
    _begins("hsbr")
    + r"(?:hv[sbr]\.[\w-]{24,}+|b\.AAAAAQ[\w-]{50,}+"
    + r"|[sr]\.(?=[A-Za-z0-9]{0,23}?(?:\d|[A-Z]{2}))(?=[A-Z0-9]{0,23}[a-z])[A-Za-z0-9]{24}(?!\w))"
)
# Only where a word begins: "eyJeyJeyJ..." must not be read again from each of its places.
_JWT = re.compile(rf"(?=eyJ)(?:(?<![\w-])|{_AFTER_QUOTED})" + r"eyJ[\w-]{6,}+\.[\w-]{6,}+(?:\.[\w-]*+){0,3}")
_WEBHOOK = re.compile(r"(hooks\.slack\.com/(?:services|workflows|triggers)/)[\w/-]{8,}+")

# --- headers, URLs, private keys -----------------------------------------------------------------------

# With a digit, an inner capital or some length: "bearer certificates" is English.
_BEARER = re.compile(
    _begins("bB")
    + r"(?i:bearer[ \t]{1,4})((?:(?=[^\s,;\"']{0,64}?(?:\d|[a-z][A-Z]))[\w.~+/=-]{8,}+|[\w.~+/=-]{24,}+))"
)
_BASIC = re.compile(_begins("bB") + r"(?i:basic[ \t]{1,4})([A-Za-z0-9+/_-]{4,}+={0,2})")
_USERINFO = re.compile(r"(://)(?!\[redacted\]@)[^\s/?#:\"'<>]{0,256}+:[^\s/?#\"'<>]{1,512}(?=@)")
_PEM_BEGIN = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}?PRIVATE KEY(?: BLOCK)?-----")
_PEM_END = re.compile(r"-----END [A-Z0-9 ]{0,40}?PRIVATE KEY(?: BLOCK)?-----")
_PEM_BODY = re.compile(r"[A-Za-z0-9+/=\s\\]*+")

# --- assignments ---------------------------------------------------------------------------------------

_NAMES = (
    *("password", "passwords", "passwd", "passwds", "pwd", "passphrase", "passphrases", "passcode"),
    *("secret", "secrets", "token", "credential", "credentials", "connectionstring"),
    *(
        "apikey",
        "accesskey",
        "accountkey",
        "privatekey",
        "secretkey",
        "sharedkey",
        "signingkey",
        "encryptionkey",
    ),
    *("subscriptionkey", "masterkey", "apikeys", "accesskeys", "accountkeys", "privatekeys", "secretkeys"),
)
_HEADERS = ("authorization", "cookie")
_COUNTS = ("maxtoken", "mintoken", "pertoken", "firsttoken", "lasttoken")
_TOKEN = (
    6  # characters that the value of a "token" must have: in answers of models it often is a piece of a word
)

# The last three letters of each name, alone, and before a digit; "lue" and "ash" are of `password_value` and the like.
_ENDINGS = (
    *(
        "ord",
        "rds",
        "swd",
        "wds",
        "pwd",
        "ase",
        "ses",
        "ode",
        "ret",
        "ets",
        "ken",
        "ial",
        "als",
        "ing",
        "key",
        "eys",
    ),
    *("ion", "kie", "lue", "ash", r"(?:rd|et|en|ey)\d"),
)
_SUFFIX = re.compile(r"(?<=[a-z])(?:value|hash|\d{1,2})$")
_BLANKS = re.compile(r"[_ .-]+")
_REFERENCE = re.compile(r"\bsecret://[\w./-]*+$")
_NAME_REACH = 64  # characters before a sign in which its name is

_QUOTED = r"""
      b?"(?P<double>(?:[^"\\\n]|\\[^\n])++)
    | b?'(?P<single>(?:[^'\\\n]|\\[^\n])++)
    | (?P<slashes>\\{1,7}+)(?P<mark>["'])
      (?:(?P<escaped>[^\n]*?)(?<!\\)(?=(?P=slashes)(?P=mark))|(?P<open>[^\n"']++))
"""
_LITERAL = r"(?!(?i:null|none|nil|true|false|undefined)\b)"
# What ends a bare value: a comma or semicolon only if something else follows, for passwords may have both.
_BARE = r"""(?:[^\s"'\\&<,;(){}\[\]]|[,;](?![\s"'\\]|[\w.%]{0,32}+[ ]?[=:]|$)|[(\[{](?!\))|[)\]}](?![\s,;.)\]}]|$))"""


def _value(rest: str) -> re.Pattern[str]:
    return re.compile(rf"[:=>]{{1,2}}[ \t]{{0,8}}(?:{_QUOTED}|(?P<rest>{rest}))", re.VERBOSE)


_AFTER_QUOTE = _value(rf"{_LITERAL}-?[\w.+-]++")  # in JSON: a number
_AFTER_NAME = _value(rf"\[redacted\]{_BARE}*+|{_LITERAL}(?![(){{}}\[\],;&<]){_BARE}++")
_AFTER_HEADER = _value(r"""[^\r\n"'\\]++""")
_VALUES = ("double", "single", "escaped", "open", "rest")
_OPTION = re.compile(r"(?<![\w-])--([A-Za-z][\w-]{1,48}+)[ \t]{1,4}+([^\s\"'\\-][^\s\"'\\]*+)")
# Lists of pairs, as HTTP clients show headers.
_COMMA = re.compile(r""",(?<=(?:ion|kie|key|ION|KIE|KEY)["'],)""")
_PAIR = re.compile(
    r"""(?i:\b(?:authorization|(?:set-)?cookie|x-api-key|api-key)["']\s?,\s?b?)"""
    r"""(?:"((?:[^"\\\n]|\\[^\n])++)|'((?:[^'\\\n]|\\[^\n])++))"""
)

_FOLDER = re.compile(r"/[a-z]+$")
_WORD = re.compile(r"(?<![A-Za-z0-9_-])secret$")
_PLACE = re.compile(r":[a-z]+(?:-[a-z]+)*(?![\w-])")


class Shapes:
    """Replaces what looks like a secret. `keys`: more names for assignments."""

    def __init__(self, keys: Collection[str] = ()) -> None:
        more = [_BLANKS.sub("", key).lower() for key in keys]
        self._names = (*_NAMES, *more)
        endings = (*_ENDINGS, *(re.escape(name[-3:]) for name in more))
        self._signs = tuple((sign, _sign(sign, endings)) for sign in "=:>")

    def clean(self, text: str) -> str:
        """`text` with each such place replaced; the same object if there is none."""
        if "-" in text:
            if "-----BEGIN" in text:
                text = _without_private_keys(text)
            if _DASH.search(text):
                text = _BEGINNING.sub(MARK, text)
            if "--" in text:
                text = _OPTION.sub(self._optional, text)
        if "_" in text and _UNDERSCORE.search(text):
            text = _BEGINNING.sub(MARK, text)
        if "IA" in text or "CCA" in text:
            text = _AWS.sub(MARK, text)
        if "AIza" in text or "ya29." in text:
            text = _GOOGLE.sub(MARK, text)
        if "." in text and _TOKEN_DOT.search(text):
            text = _VAULT.sub(MARK, text)
        if "eyJ" in text:
            text = _JWT.sub(MARK, text)
        if "earer" in text or "EARER" in text:
            text = _BEARER.sub(_bearer, text)
        if "asic" in text or "ASIC" in text:
            text = _BASIC.sub(_basic, text)
        if "/" in text:
            if "@" in text and "://" in text:
                text = _USERINFO.sub(_keep_first, text)
            if "hooks.slack.com/" in text:
                text = _WEBHOOK.sub(_keep_first, text)
        for sign, find in self._signs:
            if sign in text and find.search(text):
                text = self._assignments(text, find)
        if "," in text and _COMMA.search(text):
            text = _PAIR.sub(_pair, text)
        return text

    def _assignments(self, text: str, find: re.Pattern[str]) -> str:
        """The values of assignments go, their quotes stay; a number in JSON becomes text, so that it is still JSON."""
        kept: list[str] = []
        place = 0
        for sign in find.finditer(text):
            start = sign.start()
            if start < place:
                continue
            before = text[max(0, start - _NAME_REACH) : start].rstrip(" \t")
            name = before.rstrip("\"'").rstrip("\\")
            kind = self._kind(name)
            if not kind:
                continue
            if text.startswith("://", start) or (text[start] == ":" and _REFERENCE.search(before)):
                continue  # "secret://name" says which secret, not what it is
            if text[start] == ":" and (
                _FOLDER.search(name) or (_WORD.search(name) and _PLACE.match(text, start))
            ):
                continue  # "/run/secrets: ..." is about a folder, and "secret:vault" is what our calls go to
            closing = before[len(name) :]
            after = _AFTER_QUOTE if closing else _AFTER_HEADER if kind == "header" else _AFTER_NAME
            match = after.match(text, start)
            if match is None:
                continue
            group = next(group for group in _VALUES if match[group] is not None)
            value = match[group]
            if value.startswith("secret://"):
                continue
            if value == MARK or not value.strip() or (kind == "token" and len(value) < _TOKEN):
                continue
            quote = closing if group == "rest" else ""
            kept += (text[place : match.start(group)], quote, MARK, quote)
            place = match.end(group)
        return "".join((*kept, text[place:])) if kept else text

    def _kind(self, name: str) -> str:
        """What the text that ends with a name names: a "header", a "token", another "secret" or nothing ("")."""
        name = _SUFFIX.sub("", _BLANKS.sub("", name).lower())
        if name.endswith(_HEADERS):
            return "header"
        if not name.endswith(self._names) or name.endswith(_COUNTS):
            return ""
        return "token" if name.endswith("token") else "secret"

    def _optional(self, match: re.Match[str]) -> str:
        """An option on a command line with its value."""
        if not self._kind(match[1]):
            return match[0]
        return match[0][: match.start(2) - match.start()] + MARK


def _sign(sign: str, endings: Collection[str]) -> re.Pattern[str]:
    """Finds `sign` after the ending of a name, with a quote or a blank between them or not."""
    by_width: dict[int, list[str]] = {}
    for ending in endings:
        width = 3 if ending in _ENDINGS else len(re.sub(r"\\(.)", r"\1", ending))
        by_width.setdefault(width, []).append(ending)
    # The last letter first: one look tells most names that are none of ours.
    letters = sorted({ending[-1] for ending in endings})
    last = re.escape("".join([*letters, *map(str.upper, letters)])) + "0-9"
    between = ("", r"""["' \t]""", r"""[\\"'][ \t"']""", r"""[\\"'][\\"' \t][ \t"']""")
    behind = [
        rf"(?<=[{last}]{gap}{sign})(?<=(?i:{'|'.join(same)}){gap}{sign})"
        for gap in between
        for same in by_width.values()
    ]
    # More blanks or backslashes than that are rare, and worth the exact look.
    return re.compile(rf"{sign}(?:{'|'.join(behind)}|(?<=[ \t]{{2}}{sign})|(?<=\\\\[\"']{sign}))")


def _keep_first(match: re.Match[str]) -> str:
    return match[1] + MARK


def _bearer(match: re.Match[str]) -> str:
    return match[0][: match.start(1) - match.start()] + MARK


def _basic(match: re.Match[str]) -> str:
    """Only what decodes to "user:password": "basic understanding" is English."""
    encoded = match[1].rstrip("=").replace("-", "+").replace("_", "/")
    try:
        decoded = base64.b64decode(encoded + "=" * (-len(encoded) % 4))
    except binascii.Error:
        return match[0]
    if b":" not in decoded:
        return match[0]
    return match[0][: match.start(1) - match.start()] + MARK


def _pair(match: re.Match[str]) -> str:
    start = match.start(1) if match[1] is not None else match.start(2)
    return match[0][: start - match.start()] + MARK


def _without_private_keys(text: str) -> str:
    """PEM blocks of private keys, to their end, or as far as what follows could be one."""
    kept: list[str] = []
    place = 0
    has_end = True
    while begin := _PEM_BEGIN.search(text, place):
        end = _PEM_END.search(text, begin.end()) if has_end else None
        if end is None:
            has_end = False
            end = _PEM_BODY.match(text, begin.end())
        kept += (text[place : begin.start()], MARK)
        place = end.end() if end is not None else begin.end()
    return "".join((*kept, text[place:])) if kept else text
