"""How encryption and stored conversations are used, for the type checkers; never run."""

from typing import assert_type

from agentrt import Runtime, Session
from agentrt.conversations import Conversations
from agentrt.security.encryption import Encryption
from agentrt.security.keys import KeyRing, new_key
from agentrt.state import Entry, StateStore
from agentrt.state.sqlite import SqliteState


async def resolve(reference: str) -> str:
    return reference


async def encrypted() -> None:
    ring = await KeyRing.from_references(["secret://env/K2", "secret://env/K1"], resolve)
    assert_type(ring, KeyRing)
    assert_type(
        KeyRing.from_texts(new_key(), fernet=[b"x", "y"]).with_key(new_key(id="a"), primary=True), KeyRing
    )
    encryption = Encryption(ring)
    token = encryption.encrypt("text", context=b"place")
    assert_type(token, str)
    assert_type(encryption.decrypt(token, context="place"), bytes)
    assert_type(encryption.decrypt_text(token, context="place"), str)
    assert_type(encryption.rewrap(token, context="place"), str)
    assert_type(encryption.is_current(token), bool)
    encryption.encrypt("text")  # type: ignore[call-arg]
    encryption.encrypt(5, context="x")  # type: ignore[arg-type]


async def stored(runtime: Runtime) -> None:
    assert_type(runtime.conversations, Conversations)
    async with runtime.conversations.open("ada") as session:
        assert_type(session, Session)
    assert_type(await runtime.conversations.list(limit=5), list[Entry])
    assert_type(await runtime.conversations.delete("ada"), bool)
    store: StateStore = SqliteState(path=":memory:")
    Conversations(store, runtime.invoke)
