"""Paths that are meant to get out of a folder: the tricks of the public lists, put together in all ways.

Dots and slashes as they are, doubled, between other characters, encoded once and twice, as overlong UTF-8, as their
look-alikes; in front of and behind what a filter may cut away; towards a relative and an absolute target.
"""

from __future__ import annotations

import itertools

__all__ = ["HARMLESS", "traversals"]

UPS = (
    *(
        "..",
        "...",
        "....",
        ". .",
        ".. ",
        " ..",
        "..\t",
        "..\n",
        "..\0",
        "\0..",
        ".\0.",
        "..;",
        "..:",
        ".:.",
        "..%00",
    ),
    *(
        "%2e%2e",
        "%2e.",
        ".%2e",
        "%252e%252e",
        "%c0%ae%c0%ae",
        "%e0%80%ae%e0%80%ae",
        "%uff0e%uff0e",
        "0x2e0x2e",
    ),
    *("．．", "‥", "․․", "\u202e..", "..\u202e", "..\ufeff", "\u200b..", "\xc0\xae\xc0\xae"),  # noqa: RUF001
    *(
        "..\udc2f",
        "\udcc0\udcae\udcc0\udcae",
        "{..}",
        "$(echo ..)",
        "`echo ..`",
        "~",
        "~root",
        "*",
        "?",
        "%5c..",
        "..\\",
    ),
)
SLASHES = (
    *("/", "//", "/./", "\\", "\\\\", "\\/", "/\\", "%2f", "%252f", "%5c", "%255c", "%c0%af", "%u2215"),
    *("∕", "／", "⁄", "\xc0\xaf", "/\0/", "\0", "/%00/", "/;/", "/.:./", "/%2e/"),  # noqa: RUF001
)
FRONTS = (
    "",
    "/",
    "./",
    "//",
    "\\",
    "a/",
    "a/b/",
    "a/b/f/",
    "root/",
    "file://",
    "file:///",
    "C:\\",
    "\\\\?\\",
    "%00",
    "http:",
)
BACKS = (
    "",
    "\0",
    "\0.txt",
    "%00.txt",
    "/",
    "/.",
    "?",
    "#",
    ";",
    ".txt",
    "::$DATA",
    "\n",
    "/..",
    "/../canary",
)

HARMLESS = (
    *(
        "see you..",
        "..and so on",
        "a..b",
        "...",
        "....",
        "..a",
        ".hidden",
        " ",
        "  a",
        "-rf",
        "--help",
        "a && b",
    ),
    *(
        "O'Brien",
        'say "hi"',
        "$HOME",
        "$(id)",
        "`id`",
        "a;b",
        "a|b",
        "a\\b",
        "..\\..\\a",
        "%2e%2e%2fa",
        "~",
        "~root",
    ),
    *(
        "CON",
        "NUL.txt",
        "a:b",
        "a*?",
        "naïve",
        "日本語",
        "🦊",
        "ﬁ",
        "e\u0301",
        "\u00e9",
        "ẛ̣",
        "ß",
        "İ",
        "x" * 255,
    ),
    *(
        ".agentrt",
        "notes.part",
        ".agentrt-notes",
        "null",
        "undefined",
        "None",
        "0",
        "-1",
        "1e309",
        "<script>",
        "' OR 1=1",
    ),
    *("a\u00a0b", "‥", "．．", "∕etc∕passwd"),  # noqa: RUF001
)
"""Names like many that people give; none of them leads anywhere."""


def traversals(target: str) -> list[str]:
    """Paths from a folder two below the one that has `target`, whose own place is absolute."""
    relative = target.rpartition("/")[2]
    found = []
    for up, slash in itertools.product(UPS, SLASHES):
        step = up + slash
        for depth, front in itertools.product((1, 2, 6), ("", "a/b/")):
            found += [front + step * depth + "canary", front + step * depth + "outside" + slash + "canary"]
    for front, back in itertools.product(FRONTS, BACKS):
        found += [front + "../" * depth + "outside/" + relative + back for depth in (1, 2, 3, 4)]
        found += [front + "../canary" + back, front + target + back, front + "/etc/passwd" + back]
    found += [
        *(
            "/proc/self/root" + target,
            "/proc/self/cwd/../canary",
            "/dev/fd/0",
            "/dev/stdin",
            "/proc/self/environ",
        ),
        *(
            "out/canary",
            "out/../canary",
            "absolute/canary",
            "chain/canary",
            "magic" + target,
            "up/../canary",
            "up/canary",
        ),
        *(
            "deep/up/canary",
            "self/../../canary",
            "self/self/self/../canary",
            "a/b/../../../canary",
            "loop/canary",
        ),
    ]
    return list(dict.fromkeys(found))
