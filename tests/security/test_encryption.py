"""Tokens: as documented, and refused in one way however they were changed."""

from __future__ import annotations

import base64
import json
import os
import pickle
import subprocess
import sys
import threading
import traceback
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.errors import ConfigError
from agentrt.security import encryption as module
from agentrt.security.encryption import DecryptionFailed, Encryption
from agentrt.security.keys import KeyRing, new_key
from tests.security.token_format import make
from tests.security.two_keys import seal_for_both

VECTORS: dict[str, Any] = json.loads(Path(__file__).with_name("encryption_vectors.json").read_text())
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
RING = KeyRing.from_texts(new_key(id="now"), new_key(id="old"))
ENCRYPTION = Encryption(RING)


def raw(token: str) -> bytes:
    return base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))


def token_of(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def assert_refused(encryption: Encryption, token: str, context: str | bytes) -> None:
    """With the one error, which has the one message and nothing else beside it."""
    with pytest.raises(DecryptionFailed) as caught:
        encryption.decrypt(token, context=context)
    assert type(caught.value) is DecryptionFailed
    assert caught.value.args == DecryptionFailed().args
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert vars(caught.value) == {}


# --- the documented format -----------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS["vectors"], ids=lambda vector: vector["what"])
def test_a_vector_is_what_the_documentation_makes_of_it(vector: dict[str, str]) -> None:
    made = make(
        id=vector["id"],
        key=base64.b64decode(vector["key"]),
        salt=bytes.fromhex(vector["salt"]),
        context=bytes.fromhex(vector["context"]),
        plaintext=bytes.fromhex(vector["plaintext"]),
    )
    assert made.token == vector["token"]
    assert made.bound.hex() == vector["bound"]
    assert made.message_key.hex() == vector["message_key"]
    assert made.commitment.hex() == vector["commitment"]


@pytest.mark.parametrize("vector", VECTORS["vectors"], ids=lambda vector: vector["what"])
def test_a_vector_is_what_encryption_makes_and_reads(
    vector: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    encryption = Encryption(KeyRing.from_texts(f"{vector['id']}:{vector['key']}"))
    context, plaintext = bytes.fromhex(vector["context"]), bytes.fromhex(vector["plaintext"])
    assert encryption.decrypt(vector["token"], context=context) == plaintext
    salt = bytes.fromhex(vector["salt"])
    monkeypatch.setattr(os, "urandom", lambda count: salt[:count])
    assert encryption.encrypt(plaintext, context=context) == vector["token"]


@pytest.mark.parametrize("refused", VECTORS["refused"], ids=lambda refused: refused["what"])
def test_a_vector_that_must_be_refused_is(refused: dict[str, str]) -> None:
    encryption = Encryption(KeyRing.from_texts(*(f"{id}:{key}" for id, key in VECTORS["keys"].items())))
    assert_refused(encryption, refused["token"], bytes.fromhex(refused["context"]))


def test_the_documentation_has_the_first_vector() -> None:
    page = (Path(__file__).parents[2] / "docs" / "encryption.md").read_text()
    first = VECTORS["vectors"][0]
    for value in ("id", "key", "salt", "commitment", "message_key", "token"):
        assert first[value] in page


@settings(max_examples=200)
@given(
    plaintext=st.binary(max_size=300),
    context=st.binary(min_size=1, max_size=100),
    salt=st.binary(min_size=32, max_size=32),
)
def test_whatever_the_documentation_makes_is_read(plaintext: bytes, context: bytes, salt: bytes) -> None:
    key = RING.key("old")
    assert key is not None
    made = make(id="old", key=key, salt=salt, context=context, plaintext=plaintext)
    assert ENCRYPTION.decrypt(made.token, context=context) == plaintext


def test_every_token_begins_with_its_version_and_is_new() -> None:
    tokens = [ENCRYPTION.encrypt("same", context="same") for _ in range(1000)]
    assert len(set(tokens)) == 1000
    assert all(token.startswith("art1") and set(token) <= set(ALPHABET) for token in tokens)


def test_a_token_shows_neither_plaintext_nor_context() -> None:
    seen = raw(ENCRYPTION.encrypt("PLAINTEXT" * 5, context="CONTEXT" * 5))
    assert b"PLAIN" not in seen
    assert b"CONTEXT" not in seen


# --- round trips ---------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(plaintext=st.binary(max_size=2000), context=st.binary(min_size=1, max_size=200))
def test_bytes_come_back(plaintext: bytes, context: bytes) -> None:
    assert ENCRYPTION.decrypt(ENCRYPTION.encrypt(plaintext, context=context), context=context) == plaintext


@settings(max_examples=200)
@given(plaintext=st.text(), context=st.text(min_size=1))
def test_text_comes_back_and_is_its_utf_8(plaintext: str, context: str) -> None:
    token = ENCRYPTION.encrypt(plaintext, context=context)
    assert ENCRYPTION.decrypt_text(token, context=context) == plaintext
    assert ENCRYPTION.decrypt(token, context=context.encode()) == plaintext.encode()


def test_four_megabytes_come_back() -> None:
    data = os.urandom(4 * 2**20)
    assert ENCRYPTION.decrypt(ENCRYPTION.encrypt(data, context="big"), context="big") == data


@settings(max_examples=200)
@given(one=st.binary(min_size=1, max_size=40), other=st.binary(min_size=1, max_size=40))
def test_another_context_is_refused(one: bytes, other: bytes) -> None:
    token = ENCRYPTION.encrypt(b"x", context=one)
    if one == other:
        assert ENCRYPTION.decrypt(token, context=other) == b"x"
    else:
        assert_refused(ENCRYPTION, token, other)


# --- what was changed ----------------------------------------------------------------------------------


@pytest.mark.parametrize("plaintext", [b"", b"a", b"ab", b"Ada likes red wine"])
def test_every_changed_byte_is_refused(plaintext: bytes) -> None:
    data = raw(ENCRYPTION.encrypt(plaintext, context="place"))
    for at in range(len(data)):
        for bits in (0x01, 0x80, 0xFF):
            changed = bytearray(data)
            changed[at] ^= bits
            assert_refused(ENCRYPTION, token_of(bytes(changed)), "place")


@pytest.mark.parametrize("plaintext", [b"", b"a", b"ab"])
def test_every_changed_character_is_refused(plaintext: bytes) -> None:
    """All 64 in every place: also those that would decode to the same bytes."""
    token = ENCRYPTION.encrypt(plaintext, context="place")
    for at, right in enumerate(token):
        for character in ALPHABET + "=+/ \n\0é\u0130":
            if character != right:
                assert_refused(ENCRYPTION, token[:at] + character + token[at + 1 :], "place")


@pytest.mark.parametrize("plaintext", [b"", b"a", b"ab"])
def test_every_cut_and_every_addition_is_refused(plaintext: bytes) -> None:
    token = ENCRYPTION.encrypt(plaintext, context="place")
    for at in range(len(token)):
        assert_refused(ENCRYPTION, token[:at], "place")
        assert_refused(ENCRYPTION, token[at + 1 :], "place")
        assert_refused(ENCRYPTION, token[:at] + token[at + 1 :], "place")
        for added in ("A", "=", "\n", " ", "."):
            assert_refused(ENCRYPTION, token[:at] + added + token[at:], "place")
    for added in ("A", "AA", "AAAA", "=", "==", "===", "\n", " "):
        assert_refused(ENCRYPTION, token + added, "place")


def test_parts_of_two_tokens_do_not_fit_together() -> None:
    """Both of one key, context and length: at every boundary of the format, and in any combination of parts."""
    one, other = (raw(ENCRYPTION.encrypt(text, context="place")) for text in ("first", "other"))
    after_id = 4 + len("now")
    cuts = [0, 3, 4, after_id, after_id + 32, after_id + 64, len(one) - 16, len(one)]
    parts = list(pairwise(cuts))
    for choice in range(1, 2 ** len(parts) - 1):
        mixed = b"".join(
            (one if choice >> number & 1 else other)[begin:end] for number, (begin, end) in enumerate(parts)
        )
        if mixed not in (one, other):
            assert_refused(ENCRYPTION, token_of(mixed), "place")


@settings(max_examples=500)
@given(
    st.text(max_size=200)
    | st.binary(max_size=300).map(token_of)
    | st.binary(max_size=300).map(lambda data: token_of(b"\x6a\xbb\x75" + data))
)
def test_what_is_no_token_is_refused(foreign: str) -> None:
    assert_refused(ENCRYPTION, foreign, "place")


@settings(max_examples=500)
@given(st.binary(max_size=40), st.integers(0, 63), st.integers(0, 39))
def test_one_sequence_of_bytes_has_one_form(data: bytes, other: int, at: int) -> None:
    text = token_of(data)
    assert module._decode(text) == data
    changed = text[:at] + ALPHABET[other] + text[at + 1 :]
    decoded = module._decode(changed)
    assert decoded is None or token_of(decoded) == changed


def test_a_token_longer_than_any_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    token = ENCRYPTION.encrypt(b"x" * 2000, context="place")
    monkeypatch.setattr(module, "_MAX_TOKEN", len(token) - 1)
    assert_refused(ENCRYPTION, token, "place")


def test_an_unknown_key_is_refused_like_the_rest() -> None:
    assert_refused(Encryption(KeyRing.generate()), ENCRYPTION.encrypt("x", context="place"), "place")


def test_another_key_of_the_same_id_is_refused() -> None:
    token = ENCRYPTION.encrypt("x", context="place")
    assert_refused(Encryption(KeyRing.from_texts(new_key(id="now"))), token, "place")


def test_a_wrong_commitment_is_refused_though_the_tag_is_right() -> None:
    key = RING.key("now")
    assert key is not None
    made = make(id="now", key=key, salt=bytes(32), context=b"place", plaintext=b"x")
    assert_refused(ENCRYPTION, token_of(made.header + bytes(32) + made.sealed), "place")
    assert ENCRYPTION.decrypt(made.token, context="place") == b"x"


def test_a_ciphertext_that_is_right_under_two_keys_opens_with_one() -> None:
    """Somebody who knows two keys of one id makes a token that AES-GCM alone would open to two different texts."""
    rings = [KeyRing.from_texts(new_key(id="k")) for _ in range(2)]
    keys = [ring.key("k") or b"" for ring in rings]
    one, other = (make(id="k", key=key, salt=bytes(32), context=b"place", plaintext=b"") for key in keys)
    assert one.bound == other.bound
    sealed = seal_for_both(one.message_key, other.message_key, one.bound, b"sixteen bytes: x" * 3)
    texts = [AESGCM(made.message_key).decrypt(bytes(12), sealed, made.bound) for made in (one, other)]
    assert texts[0] != texts[1], "GCM opens it with both"
    for made, own, foreign in ((one, 0, 1), (other, 1, 0)):
        token = token_of(made.header + made.commitment + sealed)
        assert Encryption(rings[own]).decrypt(token, context="place") == texts[own]
        assert_refused(Encryption(rings[foreign]), token, "place")


def test_the_tag_is_looked_at_even_if_the_commitment_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(raw(ENCRYPTION.encrypt("x", context="place")))
    data[4 + len("now") + 32] ^= 1
    looked: list[bytes] = []
    real = ENCRYPTION._ciphers.unseal
    monkeypatch.setattr(ENCRYPTION._ciphers, "unseal", lambda *args: looked.append(args[1]) or real(*args))
    assert_refused(ENCRYPTION, token_of(bytes(data)), "place")
    assert len(looked) == 1


def test_a_failure_shows_no_key_in_its_traceback() -> None:
    with pytest.raises(DecryptionFailed) as caught:
        ENCRYPTION.decrypt("art1", context="place")
    shown = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    for id in RING.ids:
        key = RING.key(id)
        assert key is not None
        assert repr(key) not in shown
        assert base64.b64encode(key).decode() not in shown


# --- rotation ------------------------------------------------------------------------------------------


def test_a_rotation_from_the_first_key_to_the_last_loses_nothing() -> None:
    first, second = new_key(id="first"), new_key(id="second")
    # One process after the other gets the new key as a second one: all go on reading and writing.
    before, both = Encryption(KeyRing.from_texts(first)), Encryption(KeyRing.from_texts(first, second))
    stored = {place: before.encrypt(f"text of {place}", context=place) for place in ("a", "b")}
    stored["c"] = both.encrypt("text of c", context="c")
    assert before.decrypt_text(stored["c"], context="c") == "text of c"
    # Then one after the other makes it the first.
    after = Encryption(KeyRing.from_texts(second, first))
    stored["d"] = after.encrypt("text of d", context="d")
    for encryption in (both, after):
        for place, token in stored.items():
            assert encryption.decrypt_text(token, context=place) == f"text of {place}"
    # Then what is stored is rewrapped, while others read.
    assert [place for place, token in stored.items() if not after.is_current(token)] == ["a", "b", "c"]
    stored = {
        place: token if after.is_current(token) else after.rewrap(token, context=place)
        for place, token in stored.items()
    }
    assert all(after.is_current(token) for token in stored.values())
    assert {both.decrypt_text(token, context=place) for place, token in stored.items()} == {
        f"text of {place}" for place in stored
    }
    # Then the old one goes.
    last = Encryption(KeyRing.from_texts(second))
    for place, token in stored.items():
        assert last.decrypt_text(token, context=place) == f"text of {place}"
    assert_refused(last, before.encrypt("x", context="a"), "a")


def test_rewrap_wants_the_context_and_keeps_it() -> None:
    token = ENCRYPTION.encrypt("x", context="here")
    with pytest.raises(DecryptionFailed):
        ENCRYPTION.rewrap(token, context="there")
    assert_refused(ENCRYPTION, ENCRYPTION.rewrap(token, context="here"), "there")


# --- Fernet --------------------------------------------------------------------------------------------


def test_fernet_tokens_are_read_and_rewrapped() -> None:
    one, other = Fernet.generate_key(), Fernet.generate_key()
    token = Fernet(other).encrypt(b"from before").decode()
    encryption = Encryption(KeyRing.from_texts(new_key(), fernet=[one, other.decode()]))
    assert encryption.decrypt(token, context="anything: Fernet has no context") == b"from before"
    assert not encryption.is_current(token)
    moved = encryption.rewrap(token, context="row 1")
    assert moved.startswith("art1")
    assert encryption.is_current(moved)
    assert_refused(encryption, moved, "row 2")
    assert Encryption(encryption.ring.with_key(new_key(), primary=True)).decrypt(token, context="x")


def test_fernet_tokens_are_refused_without_their_key() -> None:
    token = Fernet(Fernet.generate_key()).encrypt(b"x").decode()
    assert_refused(ENCRYPTION, token, "place")
    assert_refused(Encryption(KeyRing.from_texts(new_key(), fernet=[Fernet.generate_key()])), token, "place")


def test_every_changed_character_of_a_fernet_token_is_refused() -> None:
    """Also where Fernet itself would not mind: loose bits at the end, characters that are no base64."""
    key = Fernet.generate_key()
    encryption = Encryption(KeyRing.from_texts(new_key(), fernet=[key]))
    token = Fernet(key).encrypt(b"x").decode()
    assert encryption.decrypt(token, context="place") == b"x"
    for at, right in enumerate(token):
        for character in (*ALPHABET[::7], ALPHABET[(ALPHABET.find(right) + 1) % 64], "=", "\n", "é"):
            if character != right:
                assert_refused(encryption, token[:at] + character + token[at + 1 :], "place")
        assert_refused(encryption, token[:at], "place")
        assert_refused(encryption, token[:at] + "\n" + token[at:], "place")
    assert_refused(encryption, token + "\n", "place")
    assert_refused(encryption, token + "=", "place")


# --- use -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", ["", b""])
def test_an_empty_context_is_a_mistake(context: str | bytes) -> None:
    with pytest.raises(ConfigError, match="the context is empty"):
        ENCRYPTION.encrypt("x", context=context)
    with pytest.raises(ConfigError, match="the context is empty"):
        ENCRYPTION.decrypt(ENCRYPTION.encrypt("x", context="x"), context=context)


@pytest.mark.parametrize("wrong", [None, 5, ["x"], bytearray(b"x")])
def test_values_of_other_types_are_named_and_not_shown(wrong: Any) -> None:
    kind = type(wrong).__name__
    with pytest.raises(ConfigError, match=f"the plaintext must be text or bytes, not {kind}"):
        ENCRYPTION.encrypt(wrong, context="x")
    with pytest.raises(ConfigError, match=f"the context must be text or bytes, not {kind}"):
        ENCRYPTION.encrypt("x", context=wrong)
    with pytest.raises(ConfigError, match=f"a token is text, not {kind}"):
        ENCRYPTION.decrypt(wrong, context="x")


def test_what_is_not_text_is_told_without_showing_it() -> None:
    token = ENCRYPTION.encrypt(b"hidden \xff", context="x")
    for call in (
        lambda: ENCRYPTION.decrypt_text(token, context="x"),
        lambda: ENCRYPTION.encrypt("hidden \ud800", context="x"),
    ):
        with pytest.raises(ConfigError) as caught:
            call()
        assert "hidden" not in str(caught.value)
        assert caught.value.__context__ is None
    with pytest.raises(ConfigError) as caught:
        ENCRYPTION.decrypt_text(token, context="x")
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    assert "hidden" not in "".join(shown.format())


def test_more_than_the_most_is_refused_before_it_is_encrypted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 10)
    assert ENCRYPTION.decrypt(ENCRYPTION.encrypt(b"x" * 10, context="x"), context="x") == b"x" * 10
    with pytest.raises(ConfigError, match="the plaintext has 11 bytes; the most is 10"):
        ENCRYPTION.encrypt(b"x" * 11, context="x")


def test_the_error_survives_a_pickle() -> None:
    error = pickle.loads(pickle.dumps(DecryptionFailed()))
    assert type(error) is DecryptionFailed
    assert error.args == DecryptionFailed().args


def test_many_threads_use_one_encryption() -> None:
    problems: list[BaseException] = []
    barrier = threading.Barrier(8)

    def work(number: int) -> None:
        try:
            barrier.wait()
            for turn in range(200):
                context, text = f"{number}/{turn}", f"text {number} {turn}" * (turn % 5 + 1)
                token = ENCRYPTION.encrypt(text, context=context)
                assert ENCRYPTION.decrypt_text(token, context=context) == text
                assert_refused(ENCRYPTION, token, f"{number + 1}/{turn}")
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def test_without_cryptography_the_error_names_the_extra() -> None:
    program = (
        "import sys\n"
        "sys.modules['cryptography'] = None\n"
        "from agentrt.security.keys import KeyRing\n"
        "from agentrt.security.encryption import Encryption\n"
        "try:\n    Encryption(KeyRing.generate())\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(
        "ConfigError encryption needs the package cryptography: pip install 'agentrt[security]'"
    )


def test_importing_it_imports_no_cryptography() -> None:
    program = (
        "import sys, agentrt.security.encryption\nprint([m for m in sys.modules if 'cryptography' in m])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
