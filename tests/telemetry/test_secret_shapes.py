"""What looks like a secret is redacted, ordinary text is not, and no text makes it slow."""

from __future__ import annotations

import time

import pytest

from agentrt.telemetry.redaction import MARK, Redactor

SECRET = "Zq7-correct/horse+battery=staple"
ORDINARY = (
    "The agent asked the model for a plan, then called the search tool with 2 arguments at 10:30. "
    "It found three documents about the weather in Oslo (12 degrees) and one about trains: all were short. "
)
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA7bq\n+/x=\n-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    "secret",
    [
        "sk-proj-abcdefgh1234567890ABCDEFGH",
        "sk-ant-api03-abcdefgh1234567890_ABC-DEFGH",
        "AKIAIOSFODNN7EXAMPLE",
        "ASIAIOSFODNN7EXAMPLE",
        "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
        "github_pat_11ABCDEFG0123456789_abcdefghijklmnop",
        "glpat-abcdefghij0123456789",
        "gldt-abcdefghij0123456789",
        "xoxb-123456789012-abcdefghijkl",
        "xapp-1-A0123456789-abcdef",
        "AIzaSyA-abcdefghijklmnopqrstuvwxyz01234",
        "ya29.a0AfH6SMBabcdefghijklmnop",
        "GOCSPX-abcdefghijklmnopqrstuvwx",
        "sk_live_abcdefghij0123456789",
        "hf_abcdefghijklmnopqrstuvwxyzABCDEF",
        "gsk_abcdefghijklmnopqrstuvwxyz0123",
        "npm_abcdefghijklmnopqrstuvwxyz0123456789",
        "xai-abcdefghijklmnopqrstuvwxyz0123",
        "hvs.CAESIJ1bq0a-8x7ZkWcXQ2vT9yR_3nF5",
        "hvb.AAAAAQIJ1bq0a8x7ZkWcXQ2vT9yR3nF5",
        "s.yTe3Q0bVvHnK2mXcR7pLwZ8d",
        "s.yTeQXbVvHnKamXcRRpLwZxdh",
        "b.AAAAAQ" + "aZ3-_" * 20,
        JWT,
        PEM,
        PEM.replace("\n", "\\n"),
    ],
)
def test_a_well_known_shape_is_redacted_wherever_it_stands(secret: str) -> None:
    redactor = Redactor()
    for before, after in (
        ("", ""),
        ("key: (", ")"),
        ('{"a": "', '"}'),
        ("https://x.test/?q=", "&b=1"),
        ("https://x.test/?q=use%20", "%20now"),
        ("\n", "\n"),
        ('{"a": "of today:\\n', '\\n"}'),
        ('{"a": "{\\"b\\": \\"caf\\u00e9\\\\t', '\\\\r\\"}"}'),
        ("b'\\x1b", "'"),
    ):
        assert redactor.text(before + secret + after) == before + MARK + after


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Authorization: Bearer abc.def123", "Authorization: [redacted]"),
        ("sent Bearer abcDEF-123 to it", "sent Bearer [redacted] to it"),
        ("sent Basic dXNlcjpwYXNz to it", "sent Basic [redacted] to it"),
        ("AUTHORIZATION: BEARER ABC.DEF", "AUTHORIZATION: [redacted]"),
        ("{'authorization': 'Bearer x', 'a': 1}", "{'authorization': '[redacted]', 'a': 1}"),
        (
            "[(b'authorization', b'Bearer x'), (b'a', b'b')]",
            "[(b'authorization', b'[redacted]'), (b'a', b'b')]",
        ),
        ('curl -H "Authorization: token x y" https://x', 'curl -H "Authorization: [redacted]" https://x'),
        ("Cookie: a=b; c=d\nHost: x", "Cookie: [redacted]\nHost: x"),
        ("Set-Cookie: sid=1; Path=/", "Set-Cookie: [redacted]"),
        ("X-Api-Key: 12ab", "X-Api-Key: [redacted]"),
        ("postgres://ada:p@ss:w0rd@db.test/x?y", "postgres://[redacted]@db.test/x?y"),
        ("redis://:hunter2@cache.test:6379/0", "redis://[redacted]@cache.test:6379/0"),
        ("https://hooks.slack.com/services/T0/B0/abcdef", "https://hooks.slack.com/services/[redacted]"),
        ("password=hunter2", "password=[redacted]"),
        ("DB_PASSWORD=hunter2\nHOST=x", "DB_PASSWORD=[redacted]\nHOST=x"),
        ("password: a,b;c!d next", "password: [redacted] next"),
        ("password = 'two words' # why", "password = '[redacted]' # why"),
        ('{"password": "a\\"b", "user": "x"}', '{"password": "[redacted]", "user": "x"}'),
        ('{"password":12345,"user":"x"}', '{"password":"[redacted]","user":"x"}'),
        ('{"a":"{\\"api_key\\":\\"x y\\"}"}', '{"a":"{\\"api_key\\":\\"[redacted]\\"}"}'),
        ('{"password": "cut in the mid', '{"password": "[redacted]'),
        ("/x?access_token=abcdefgh&page=2", "/x?access_token=[redacted]&page=2"),
        ("Server=x;Password=a;Pooling=1", "Server=x;Password=[redacted];Pooling=1"),
        ("AccountKey=abc+/==;Endpoint=x", "AccountKey=[redacted];Endpoint=x"),
        ("aws_secret_access_key = wJalrXUtnFEMI/K7", "aws_secret_access_key = [redacted]"),
        ("connect(password='x', apiKey=\"y\")", "connect(password='[redacted]', apiKey=\"[redacted]\")"),
        ("<password>abc</password>", "<password>[redacted]</password>"),
        ("tool --api-key abc --verbose", "tool --api-key [redacted] --verbose"),
        ("secret => xyz", "secret => [redacted]"),
        ("client_secret=[redacted]rest", "client_secret=[redacted]"),
    ],
)
def test_headers_urls_and_assignments_lose_their_secret_and_nothing_else(text: str, expected: str) -> None:
    redactor = Redactor()
    assert redactor.text(text) == expected
    assert redactor.text(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        ORDINARY,
        "basic understanding of JavaScript, and Basic English",
        "the bearer certificates of the bearer of this",
        "task-management-for-everyone, risk-assessment, sk-learn-compatible-pipeline",
        "https://example.test/a:b@c, mailto:ada@example.test, ssh://git@example.test/x",
        '{"input_tokens": 123456, "max_tokens": 4096, "total_tokens": 1234567, "token": " the"}',
        "max_token=123456 time_per_token: 123456 tokens: 1234567",
        '{"password": {"type": "string"}, "secret": null, "token": true}',
        '{"required": ["password", "username"]}',
        "password=None secret: false",
        "a secret is a secret, and the token was spent",
        "3f2b8c1e-7a4d-4e0b-9c1f-2b3c4d5e6f70",
        "eyJ is how a JWT begins",
        "hvs.short, s.assertMultiLineEqualAgain(a), docs.averylongsubdomainofacompany.test, r.text. s.1",
        "api_key = secret://env/DD_API_KEY: the variable is not set, nor is secret://nope: no such name",
        '{"password": "secret://db", "token": "secret://env/TOKEN"}',
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
        "the monkey: banana, keyboard=qwerty, author: Ada, cookies are nice",
    ],
)
def test_ordinary_text_is_the_same_object(text: str) -> None:
    assert Redactor().text(text) is text


def test_a_private_key_without_an_end_takes_only_what_could_be_of_it() -> None:
    begin = PEM.partition("\n-----END")[0]
    assert Redactor().text(f'{{"a": "{begin}", "b": 1}}') == f'{{"a": "{MARK}", "b": 1}}'


ADVERSARIAL = {
    "sk": "sk-",
    "jwt": "eyJ",
    "jwt dots": "eyJaaaaaa.",
    "vault": "s." + "a" * 24,
    "vault dots": "s.r.",
    "pem": "-----BEGIN PRIVATE KEY-----",
    "pem prose": "-----BEGIN PRIVATE KEY----- a, ",
    "dashes": "-",
    "options": "--a ",
    "url": "://a:",
    "url colons": "://" + ":" * 997,
    "bearer": "bearer ",
    "basic": "basic aaaa",
    "quotes": 'password="',
    "escaped quotes": 'password=\\"a',
    "more escapes": 'password=\\\\\\"',
    "unclosed": "password=\\' ",
    "backslashes": "password=\\",
    "only backslashes": "\\",
    "signs": "password=",
    "colons": "password: ",
    "commas": "password=a,",
    "blanks": "password" + " " * 50 + "=",
    "spaces": "token: ",
    "headers": "authorization: ",
    "pairs": "'cookie', ",
    "letters": "a",
    "secret": SECRET[:-1],
    "anchors": "Zq7-",
}


@pytest.mark.parametrize("piece", ADVERSARIAL)
def test_time_grows_with_the_text_and_not_with_its_square(piece: str) -> None:
    redactor = Redactor()
    redactor.add(SECRET)

    def seconds(size: int) -> float:
        text = (ADVERSARIAL[piece] * size)[:size]
        best = 1e9
        for _ in range(3):
            started = time.thread_time()
            redactor.text(text)
            best = min(best, time.thread_time() - started)
        return best

    small, large = seconds(12_500), seconds(100_000)
    # Eight times the text: eight times as long, a square would take 64 times.
    assert large < 24 * max(small, 0.0005)


@pytest.mark.parametrize(
    "text",
    [
        "secret:vault",
        "secret:my-vault: no result within its attempt limit of 5 s",
        "there is no directory /run/secrets: mount it",
    ],
)
def test_where_secrets_come_from_is_no_secret(text: str) -> None:
    assert Redactor().text(text) == text


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("secret:hunter2", "secret:[redacted]"),
        ("secret: hunter", "secret: [redacted]"),
        ("client_secret:hunter", "client_secret:[redacted]"),
        ("secret=hunter", "secret=[redacted]"),
    ],
)
def test_what_is_assigned_to_a_secret_is_one(text: str, redacted: str) -> None:
    assert Redactor().text(text) == redacted
