"""Rings of keys: where keys come from, and that no key is ever shown."""

from __future__ import annotations

import base64
import copy
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrt.errors import ConfigError
from agentrt.security.keys import KEY_BYTES, KeyRing, new_key

KEY = bytes(range(32))
TEXT = base64.b64encode(KEY).decode()


def test_a_generated_ring_has_one_new_key() -> None:
    rings = [KeyRing.generate() for _ in range(50)]
    assert len({ring.key(ring.primary) for ring in rings}) == 50
    assert all(ring.ids == (ring.primary,) for ring in rings)
    assert KeyRing.generate(id="mine").ids == ("mine",)


def test_the_first_text_is_the_primary() -> None:
    ring = KeyRing.from_texts(new_key(id="b"), new_key(id="a"))
    assert (ring.primary, ring.ids) == ("b", ("b", "a"))


def test_a_key_without_an_id_always_has_the_same_one() -> None:
    assert KeyRing.from_texts(TEXT).primary == KeyRing.from_texts(TEXT).primary == "d00b33c0"
    assert len({KeyRing.generate().primary for _ in range(200)}) == 200


@given(st.binary(min_size=32, max_size=32).filter(lambda key: len(set(key)) > 9))
def test_base64_of_either_kind_is_taken(key: bytes) -> None:
    plain, url = base64.b64encode(key).decode(), base64.urlsafe_b64encode(key).decode()
    texts = (plain, url, plain.rstrip("="), url.rstrip("="), f"  {plain}\n", f"{plain}\r\n")
    for text in texts:
        ring = KeyRing.from_texts(text)
        assert ring.key(ring.primary) == key


def test_new_key_is_what_from_texts_takes() -> None:
    for _ in range(20):
        key = KeyRing.from_texts(new_key(id="k-1.a_b")).key("k-1.a_b")
        assert key is not None
        assert len(key) == KEY_BYTES


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hunter2",
        TEXT[:-2],
        TEXT + "AAAA",
        base64.b64encode(KEY[:31]).decode(),
        base64.b64encode(KEY + b"x").decode(),
        KEY.hex(),
        f"a b:{TEXT}",
        f"{'x' * 33}:{TEXT}",
        f":{TEXT}",
        f"é:{TEXT}",
        f"hunter2:{TEXT[:-3]}",
        TEXT[:10] + "\n" + TEXT[10:],
        TEXT.replace("A", "é"),
    ],
)
def test_what_is_no_key_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        KeyRing.from_texts(new_key(), text)
    message = str(caught.value)
    assert "key 2" in message
    assert "hunter2" not in message
    assert TEXT[:8] not in message
    assert caught.value.__context__ is None


@pytest.mark.parametrize("placeholder", [bytes(32), b"\xff" * 32, b"changeme" * 4, b"0123" * 8])
def test_a_placeholder_is_not_taken_for_a_key(placeholder: bytes) -> None:
    with pytest.raises(ConfigError, match="key 1 is not random"):
        KeyRing.from_texts(base64.b64encode(placeholder).decode())


def test_a_ring_wants_keys_of_its_size_and_a_primary_among_them() -> None:
    with pytest.raises(ConfigError, match="the key 'a' must be 32 random bytes, not 31 bytes"):
        KeyRing({"a": KEY[:31]}, primary="a")
    with pytest.raises(ConfigError, match="the primary key 'b' is none of the ring's: a"):
        KeyRing({"a": KEY}, primary="b")
    with pytest.raises(ConfigError, match="a key ring needs a key"):
        KeyRing.from_texts()
    with pytest.raises(ConfigError, match="Fernet key 1 must be base64"):
        KeyRing({"a": KEY}, primary="a", fernet=["nothing"])


def test_one_id_stands_for_one_key() -> None:
    with pytest.raises(ConfigError, match=r"key 2 has the same id as a key before it \(a\)"):
        KeyRing.from_texts(new_key(id="a"), new_key(id="a"))
    with pytest.raises(ConfigError, match="the same id"):
        KeyRing.from_texts(TEXT, TEXT)


def test_rings_are_changed_by_making_others() -> None:
    ring = KeyRing.from_texts(new_key(id="a"), fernet=[TEXT.replace("+", "-").replace("/", "_")])
    more = ring.with_key(new_key(id="b"))
    assert (more.primary, more.ids) == ("a", ("a", "b"))
    rotated = ring.with_key(new_key(id="b"), primary=True)
    assert (rotated.primary, rotated.without("a").ids) == ("b", ("b",))
    assert ring.ids == ("a",)
    assert rotated.without("a").fernet_keys == ring.fernet_keys
    with pytest.raises(ConfigError, match="already"):
        more.with_key(new_key(id="b"))
    for id in ("a", "c"):
        with pytest.raises(ConfigError, match=f"the key '{id}' cannot be left out; those that can: b"):
            more.without(id)


@pytest.mark.asyncio
async def test_keys_are_resolved_from_references() -> None:
    store = {
        "secret://vault/k2": new_key(id="k2"),
        "secret://vault/k1": f"{TEXT}\n",
        "secret://vault/f": TEXT,
    }
    asked: list[str] = []

    async def resolve(reference: str) -> str:
        asked.append(reference)
        return store[reference]

    ring = await KeyRing.from_references(
        ["secret://vault/k2", "secret://vault/k1"], resolve, fernet=["secret://vault/f"]
    )
    assert asked == ["secret://vault/k2", "secret://vault/k1", "secret://vault/f"]
    assert (ring.primary, ring.ids) == ("k2", ("k2", "d00b33c0"))
    assert len(ring.fernet_keys) == 1


@pytest.mark.asyncio
async def test_a_reference_to_what_is_no_key_is_named() -> None:
    async def resolve(reference: str) -> str:
        return "hunter2"

    with pytest.raises(ConfigError, match="secret://env/KEY must be base64 of 32 random bytes") as caught:
        await KeyRing.from_references(["secret://env/KEY"], resolve)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError, match="secret://env/OLD must be base64"):
        await KeyRing.from_references([], resolve, fernet=["secret://env/OLD"])


@pytest.mark.asyncio
async def test_a_key_in_place_of_its_reference_is_neither_asked_for_nor_shown() -> None:
    async def resolve(reference: str) -> str:
        raise AssertionError(reference)

    for references, old in (([TEXT], []), (["secret://env/K", TEXT], []), (["secret://env/K"], [TEXT])):
        with pytest.raises(
            ConfigError, match=r'^number [12] is no reference such as "secret://env'
        ) as caught:
            await KeyRing.from_references(references, resolve, fernet=old)
        assert TEXT not in str(caught.value)


def test_a_ring_does_not_show_its_keys() -> None:
    ring = KeyRing.from_texts(f"a:{TEXT}", fernet=[TEXT])
    assert repr(ring) == str(ring) == f"{ring}" == "KeyRing(primary='a', ids=['a'], fernet=1)"
    assert not hasattr(ring, "__dict__")
    assert copy.copy(ring) is copy.deepcopy(ring) is ring
    with pytest.raises(TypeError, match=re.escape("a KeyRing is not pickled")):
        pickle.dumps(ring)
