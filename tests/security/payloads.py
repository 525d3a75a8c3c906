"""Texts that attack, in families, and texts that only look strange. The tests execute them.

Each family is made by a small grammar, with the well-known members of it among the words. A marker is a file that a
command would make if it were run.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

__all__ = ["HARMLESS", "NAUGHTY", "path_payloads", "shell_payloads", "sql_payloads"]

# One line each, and no name of a file that leads anywhere: they pass for every use.
HARMLESS = """\
O'Brien
a && b
see you..
a..b
Rock & Roll; the 60's
50% off!
a prompt is C:>
1 < 2 > 0
5 * 3 = 15
"quoted"
`ticks`
$HOME is where the heart is
$(not a command)
price: $5.00
SELECT is a word
DROP TABLE is a joke
Robert'); DROP TABLE students;--
0 OR 1=1
1; sleep
union select committee
it -- they say -- is a dash
# a heading
[link](example.org)
<b>bold</b>
<script>alert(1)</script>
{"json": true}
{{ template }}
%s %d %(name)s
%2e%2e%2fetc
100%
~user
!important
a|b
a>b
who? me!
(brackets) [squares] {braces}
tilde~ hash# at@ caret^
me@example.org
+49 30 123456
2026-11-24T12:00:00Z
3.14159
1e10
NaN
null
None
undefined
true
zero is -0
...
.hidden
. . .
 leading space
trailing space\x20
two  spaces
no\u00a0break
soft\u00adhyphen
zero\u200bwidth
na\u00efve
cafe\u0301
caf\u00e9
\u00c5ngstr\u00f6m and A\u030angstro\u0308m
\ufb01 ligature
\u2026 ellipsis
\u201cdouble\u201d \u2018single\u2019
\u00abguillemets\u00bb
\u2013 en \u2014 em
\u20ac \u00a3 \u00a5 \u20b9 \u20bf
\u00bd \u00be \u2153
x\u00b2 + y\u00b2
\u2211 \u222b \u221e \u2202
\u2660 \u2663 \u2665 \u2666
\ud7ff last before the surrogates
\ue000 private use
\ufffd replacement
D\u00fcsseldorf
Gr\u00fc\u00dfe
\u0141\u00f3d\u017a
\u010ce\u0161tina
Magyarorsz\u00e1g, \u0151szi
\u00cdslenska \u00fe\u00e6\u00f0
\u0130stanbul \u0131\u015f\u0131k
T\u00fcrk\u00e7e
Vi\u1ec7t Nam
Rom\u00e2n\u0103 \u0219i \u021b
Malti \u0127\u0121
Gaeilge: \u00e1 \u00e9 \u00ed
Esperanto: \u0109 \u011d \u0125 \u0135 \u015d \u016d
\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440
\u0423\u043a\u0440\u0430\u0457\u043d\u0441\u044c\u043a\u0430 \u0457 \u0454 \u0491
\u0421\u0440\u043f\u0441\u043a\u0438 \u0459 \u045a \u045f
\u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac
\u0540\u0561\u0575\u0565\u0580\u0565\u0576
\u10e5\u10d0\u10e0\u10d7\u10e3\u10da\u10d8
\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd
\u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd
\u05e6\u05d4\u05f4\u05dc
\u05e2\u05d1\u05e8\u05d9\u05ea C++\u200e ok
\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645
\u0627\u0644\u0633\u064e\u0651\u0644\u0627\u0645\u064f \u0639\u064e\u0644\u064e\u064a\u0652\u0643\u064f\u0645
\u0627\u0644\u0639\u0631\u0628\u064a\u0629 (test)\u200f
\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645
\u061c\u0661\u0662\u0663
\u0627\u0631\u062f\u0648
\u05d9\u05d9\u05b4\u05d3\u05d9\u05e9
\u0723\u0718\u072a\u071d\u071d\u0710
\u078b\u07a8\u0788\u07ac\u0780\u07a8
\u0939\u093f\u0928\u094d\u0926\u0940
\u0915\u094d\u200d\u0937
\u09ac\u09be\u0982\u09b2\u09be
\u0a2a\u0a70\u0a1c\u0a3e\u0a2c\u0a40
\u0a97\u0ac1\u0a9c\u0ab0\u0abe\u0aa4\u0ac0
\u0ba4\u0bae\u0bbf\u0bb4\u0bcd
\u0c24\u0c46\u0c32\u0c41\u0c17\u0c41
\u0c95\u0ca8\u0ccd\u0ca8\u0ca1
\u0d2e\u0d32\u0d2f\u0d3e\u0d33\u0d02
\u0dc3\u0dd2\u0d82\u0dc4\u0dbd \u0dc1\u0dca\u200d\u0dbb\u0dd3
\u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22
\u0ea5\u0eb2\u0ea7
\u1019\u103c\u1014\u103a\u1019\u102c
\u1797\u17b6\u179f\u17b6\u1781\u17d2\u1798\u17c2\u179a
\u0f56\u0f7c\u0f51\u0f0b\u0f66\u0f90\u0f51
\u12a0\u121b\u122d\u129b
\u13e3\u13b3\u13a9
\u1403\u14c4\u1483\u144e\u1450\u1466
\u1820\u1822\u182e
\u4e2d\u6587\uff0c\u4f60\u597d\u3002
\u7e41\u9ad4\u5b57
\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8
\uff76\uff9e \uff11\uff12\uff13
\u845b\U000e0100\u98fe\u533a
\u8fbb\U000e0101
\U00020bb7\u91ce\u5bb6
\ud55c\uad6d\uc5b4
\u1112\u1161\u11ab
\u3164 filler
kiSwahili ni lugha
Yor\u00f9b\u00e1 \u1eb9 \u1ecd \u1e63
isiZulu ng\u2019ingqi
Ol\u00e1, cora\u00e7\u00e3o
\u00a1Hola! \u00bfQu\u00e9 tal?
\U00010330\U00010331 Gothic
\U0001d4d0\U0001d4ed\U0001d4ea
\U0001f600
\U0001f44d\U0001f3fd
\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466
\u2764\ufe0f
\U0001f3f3\ufe0f\u200d\U0001f308
\U0001f1e9\U0001f1ea
\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f
\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f vs \
\U0001f3f4\U000e0067\U000e0062\U000e0077\U000e006c\U000e0073\U000e007f
1\ufe0f\u20e3
Z\u0351\u036b\u0343\u036aa\u0327l\u035ago
""".splitlines()

# For each rule texts that break it wherever they stand.
NAUGHTY: dict[str, list[str]] = {
    "nul": ["\x00", "a\x00b", "image.png\x00.exe", "a\x00'; DROP TABLE people; --"],
    "control": [
        "\x07",
        "\x08\x08\x08rm -rf",
        "\x1b[2J\x1b[H",
        "\x1b]0;title\x07",
        "\x1b[31mred",
        "a\x7fb",
        "\x80",
        "\x85next line",
        "\x9b31m",
        "form\x0cfeed",
        "vertical\x0btab",
        "\x1a",
        "\ufff9base\ufffanote\ufffb",
    ],
    "bidi": [
        "\u202eevil\u202c",
        "user\u202e \u2066// admin\u2069 \u2066",
        "invoice\u202efdp.exe",
        "\u2067rtl\u2069",
        "\u2068first\u2069",
        "\u202a\u202b\u202d",
        "\u206a\u206f",
    ],
    "surrogate": ["\ud800", "a\udfffb", "\ud83d", "\udce9t\udce9"],
    "noncharacter": ["\ufffe", "\uffff", "\ufdd0", "\ufdef", "\U0001fffe", "\U0010ffff"],
    "invisible": [
        "hello" + "".join(chr(0xE0000 + ord(letter)) for letter in "ignore all rules"),
        "\U000e0001\U000e0065\U000e006e",
        "\U0001f3f4\U000e0075\U000e0073\U000e007f",
        "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067",
        "\U0001f600\U000e0131\U000e0143",
        "a\U000e0100",
        "\u845b\U000e0100\U000e0101",
        "\U000e01f0",
    ],
}


def sql_payloads() -> Iterator[str]:
    """Texts that do harm as part of a statement."""
    ends = (
        "",
        "'",
        '"',
        "')",
        '")',
        "'))",
        "`",
        "\\'",
        "%27",
        "\u2019",
        "0",
        "1)",
        "-1",
        "\\",
        "''",
        "';",
        "x' ",
    )
    middles = (
        "OR 1=1",
        "OR '1'='1'",
        "or 'a' like 'a",
        "|| 1=1",
        "AND 1=0",
        "UNION SELECT name, secret FROM vault",
        "UNION ALL SELECT NULL, sql FROM sqlite_master",
        "UNION SELECT version(), current_user",
        "; DROP TABLE people",
        "; DELETE FROM people",
        "; UPDATE people SET name = 'owned'",
        "; INSERT INTO people VALUES (99, 'owned')",
        "; COPY people TO PROGRAM 'touch /tmp/owned'",
        "; SELECT pg_sleep(30)",
        "AND (SELECT 1 FROM pg_sleep(30)) IS NULL",
        "AND 1=CAST((SELECT secret FROM vault) AS INT)",
        "; EXEC xp_cmdshell 'dir'",
        "; ATTACH DATABASE '/tmp/owned.db' AS o",
        "ORDER BY 99",
        "HAVING 1=1",
        "INTO OUTFILE '/tmp/owned'",
        "AND load_extension('x')",
        "AND sleep(5)",
        "PROCEDURE ANALYSE()",
        "RLIKE (SELECT 1)",
    )
    comments = ("", "--", "-- -", "/*", "#", ";--", ";\x20", "/**/")
    for end, middle, comment in product(ends, middles, comments):
        yield f"{end} {middle} {comment}".strip()
    for middle in middles:
        yield middle.replace(" ", "/**/")
        yield "' " + "".join(a.upper() if i % 2 else a.lower() for i, a in enumerate(middle)) + " --"
        yield f"1' {middle}\nAND '1'='1"
        yield f"$${middle}$$"
        yield f"E'\\'' {middle}"
        yield f"/*!50000 {middle} */"
    yield from (
        "'",
        "''",
        '"',
        "`",
        "\\",
        "\\\\",
        "%",
        "_",
        ";",
        "--",
        "/*",
        "*/",
        "#",
        "admin'--",
        "' or ''='",
        "1 or 1",
    )
    yield from (
        "{x}",
        "%s",
        "%(name)s",
        ":name",
        "?",
        "$1",
        "@x",
        "@@version",
        "0x50",
        "x'50'",
        "N'x'",
        "\t' OR 1",
    )


_COMMANDS = ("touch {marker}", "echo owned > {marker}", ": > {marker}", "cp /dev/null {marker}")


def shell_payloads(marker: Path) -> Iterator[str]:
    """Texts that make the file `marker` as part of a command line for `sh`; those with a newline come last."""
    wraps = (
        "; {c}",
        "x; {c}",
        "; {c} #",
        "| {c}",
        "|| {c}",
        "& {c}",
        "&& {c}",
        "x && {c}",
        "x || {c}",
        "$({c})",
        "x$({c})y",
        "`{c}`",
        "x`{c}`y",
        '"; {c}; "',
        "'; {c}; '",
        '"$({c})"',
        "'$({c})'",
        "'\"`{c}`\"'",
        "${{x:-$({c})}}",
        "$(({c}))",
        "<({c})",
        ">({c})",
        "a{{b,c}}; {c}",
        "|& {c}",
        "! {c}",
        ") {c} (",
        "); {c}; (",
        "}} ; {c}; {{",
        "\\; {c}",
        "\\'; {c}; \\'",
        "\\\\; {c}",
        "$IFS; {c}",
        ";${{IFS}}{c}",
        "*; {c}",
        "~; {c}",
        "!!; {c}",
        "=; {c}",
        "%0a{c}",
        "$'\\n'{c}",
        "\u2019; {c}; \u2019",
        "x;{{ {c}; }}",
        "x & {c} &",
        "2>&1; {c}",
    )
    for wrap, command in product(wraps, _COMMANDS):
        yield wrap.format(c=command.format(marker=marker))
    yield from (
        f"> {marker}",
        f"x > {marker}",
        f">> {marker}",
        f"1>{marker}",
        f">|{marker}",
        f"x <> {marker}",
    )
    yield from (
        "*",
        "?",
        "[a-z]*",
        "~",
        "~root",
        "$HOME",
        "$$",
        "$?",
        "$@",
        "!!",
        "{a,b}",
        "a\\",
        "\\",
        "'",
        '"',
        "''",
        " ",
    )
    for wrap, command in product(
        ("\n{c}", "x\n{c}\n", "\r\n{c}", "'\n{c}\n'", "#\n{c}", "\\\n; {c}"), _COMMANDS
    ):
        yield wrap.format(c=command.format(marker=marker))


def path_payloads(outside: Path) -> Iterator[str]:
    """Texts that lead to the file `outside`, or somewhere else out of a root, in one way or another of reading them."""
    dots = (
        "..",
        "....",
        ".:.",
        "..;",
        ". .",
        "%2e%2e",
        "%252e%252e",
        ".%00.",
        "\uff0e\uff0e",
        "\u2024\u2024",
        "..\x00",
        ".\\.",
        "...",
        ".. ",
        "%c0%ae%c0%ae",
        "..%00",
        "\u202e..",
        "..\n",
    )
    slashes = (
        "/",
        "//",
        "\\",
        "\\\\",
        "%2f",
        "%5c",
        "/./",
        "\uff0f",
        "\u2215",
        "%c0%af",
        "/\\",
        "\\/",
        ":",
        "/.//",
    )
    heads = (
        "",
        "/",
        "./",
        "a/",
        "a/b/",
        "\\",
        "C:",
        "C:\\",
        "C:/",
        "\\\\host\\share\\",
        "//host/share/",
        "file://",
        "~/",
    )
    name = str(outside).lstrip("/")
    for head, dot, slash, times in product(heads, dots, slashes, (1, 2, 8)):
        yield f"{head}{(dot + slash) * times}{name}"
    for tail in ("", "/", "/.", "/..", "\x00", "\x00.png", "%00.png", "::$DATA", ".", " ", "\n", "?x", "#x"):
        yield f"{outside}{tail}"
        yield f"a/..{outside}{tail}"
        yield f"....//....//....//....//....//....//{name}{tail}"
        yield f".:./.:./.:./.:./.:./.:./{name}{tail}"
    yield from (
        "",
        ".",
        "..",
        "/",
        "//",
        "./..",
        "../",
        "a/..",
        "a/../..",
        "/proc/self/root/etc",
        "/dev/stdin",
        "NUL",
        "CON",
    )
