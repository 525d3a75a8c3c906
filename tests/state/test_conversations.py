"""Stored conversations: as they were, for whoever has the keys, and for nobody else."""
# ruff: noqa: ASYNC240

from __future__ import annotations

import asyncio
import sqlite3
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from agentrt import Agent, Config, Runtime, Session
from agentrt.conversations import Conversations, SessionUnreadable
from agentrt.errors import ConfigError, TransientError
from agentrt.models.protocol import FilePart, ImagePart, Message, TextPart, ToolCall
from agentrt.models.scripted import Scripted
from agentrt.secrets.protocol import SecretNotFound
from agentrt.security.encryption import Encryption
from agentrt.security.keys import KeyRing, new_key
from agentrt.state import StateConflict, Stored
from agentrt.state.sqlite import SqliteState

pytestmark = pytest.mark.asyncio

TEXT = "ADA LIKES RED WINE"


async def directly(
    kind: str, target: str, fn: Callable[[], Awaitable[Any]], /, *, idempotent: bool = False
) -> Any:
    assert (kind, idempotent) == ("state", True)
    return await fn()


class Kept:
    """A store that is a dict."""

    def __init__(self) -> None:
        self.documents: dict[str, Stored] = {}

    async def load(self, id: str, /) -> Stored | None:
        return self.documents.get(id)

    async def save(self, id: str, document: str, /, *, revision: str, replaces: str | None) -> None:
        there = self.documents.get(id)
        if (there.revision if there else None) != replaces:
            raise StateConflict(id)
        self.documents[id] = Stored(document, revision)

    async def delete(self, id: str, /) -> bool:
        return self.documents.pop(id, None) is not None

    async def list(self, prefix: str = "", /, *, limit: int = 100) -> list[Any]:
        return [id for id in self.documents if id.startswith(prefix)][:limit]


def full() -> Session:
    messages = [
        Message(role="system", content="be short"),
        Message(
            role="user",
            content=[TextPart(TEXT), ImagePart(data="aGk="), FilePart(data="aGk=", media_type="text/plain")],
        ),
        Message(
            role="assistant",
            content="naïve 東京 🙂",
            tool_calls=[ToolCall("1", "add", '{"a": 1}')],
            continuation=[{"type": "thinking", "signature": "abc", "n": 1}],
        ),
        Message(role="tool", content="2", tool_call_id="1", is_error=True),
    ]
    return Session("ada", messages, {"n": 1, "deep": {"list": [1, 2.5, None, True, "x"]}})


def encrypted(store: Any, ring: KeyRing, **options: Any) -> Conversations:
    return Conversations(store, directly, encryption=Encryption(ring), encrypt=True, **options)


RING = KeyRing.from_texts(new_key(id="now"), new_key(id="old"))


@pytest.mark.parametrize("ring", [None, RING])
async def test_a_session_comes_back_as_it_was(ring: KeyRing | None) -> None:
    store = Kept()
    conversations = Conversations(store, directly) if ring is None else encrypted(store, ring)
    session = full()
    await conversations.save(session)
    loaded = await conversations.load("ada")
    assert (loaded.id, loaded.messages, loaded.state) == ("ada", full().messages, full().state)
    assert loaded.revision == session.revision is not None
    assert (TEXT in store.documents["ada"].document) is (ring is None)


async def test_an_unknown_id_is_a_new_session() -> None:
    session = await Conversations(Kept(), directly).load("new")
    assert (session.id, session.messages, session.state, session.revision) == ("new", [], {}, None)


async def test_a_block_saves_when_it_did_not_raise() -> None:
    conversations = Conversations(Kept(), directly)
    async with conversations.open("ada") as session:
        session.state["n"] = 1

    async def fail() -> None:
        async with conversations.open("ada") as session:
            session.state["n"] = 2
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        await fail()
    assert (await conversations.load("ada")).state == {"n": 1}
    assert await conversations.delete("ada") is True
    assert (await conversations.load("ada")).revision is None


async def test_two_who_continue_a_session_do_not_overwrite_each_other() -> None:
    conversations = Conversations(Kept(), directly)
    await conversations.save(Session("ada"))
    one, other = await conversations.load("ada"), await conversations.load("ada")
    one.state["by"] = "one"
    await conversations.save(one)
    await conversations.save(one)
    other.state["by"] = "other"
    with pytest.raises(StateConflict):
        await conversations.save(other)
    assert (await conversations.load("ada")).state == {"by": "one"}


async def test_a_long_session_is_encrypted_aside() -> None:
    conversations = encrypted(Kept(), RING)
    session = Session("ada", [Message(role="user", content="x" * 600_000)])
    await conversations.save(session)
    assert (await conversations.load("ada")).messages == session.messages


# --- what was changed ----------------------------------------------------------------------------------


async def assert_unreadable(conversations: Conversations, id: str, why: str) -> None:
    with pytest.raises(SessionUnreadable, match=why) as caught:
        await conversations.load(id)
    assert f"the stored session {id!r}" in str(caught.value)
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    ours = [frame for frame in shown.stack if "agentrt/" in frame.filename]
    assert ours
    assert TEXT not in "".join(shown.format())
    assert caught.value.__cause__ is None


async def test_a_tampered_row_names_the_session_and_never_the_text() -> None:
    store = Kept()
    conversations = encrypted(store, RING)
    await conversations.save(full())
    token = store.documents["ada"].document
    for at in range(0, len(token), 7):
        other = "A" if token[at] != "A" else "B"
        store.documents["ada"] = Stored(token[:at] + other + token[at + 1 :], "r")
        await assert_unreadable(
            conversations, "ada", "cannot be decrypted: it was changed outside of agentrt"
        )
    for document in ("", token[:-4], "nonsense"):
        store.documents["ada"] = Stored(document, "r")
        await assert_unreadable(conversations, "ada", "cannot be decrypted")


async def test_a_row_put_into_another_session_or_store_is_refused() -> None:
    store = Kept()
    conversations = encrypted(store, RING)
    await conversations.save(full())
    store.documents["eve"] = store.documents["ada"]
    await assert_unreadable(conversations, "eve", "belongs to another session")
    assert (await encrypted(store, RING, name="default").load("ada")).id == "ada"
    await assert_unreadable(encrypted(store, RING, name="other"), "ada", r"another \[state\] name")


async def test_keys_rotate_and_a_lost_one_is_told() -> None:
    store, old, new = Kept(), new_key(id="old"), new_key(id="new")
    await encrypted(store, KeyRing.from_texts(old)).save(full())
    both = encrypted(store, KeyRing.from_texts(new, old))
    session = await both.load("ada")
    await both.save(session)
    only_new = encrypted(store, KeyRing.from_texts(new))
    assert (await only_new.load("ada")).messages == full().messages
    await assert_unreadable(
        encrypted(store, KeyRing.from_texts(old)), "ada", r"its key is not in \[encryption\] keys"
    )
    await assert_unreadable(Conversations(store, directly), "ada", r"is encrypted: set the keys")


async def test_clear_rows_are_read_where_that_is_accepted_and_encrypted_when_they_are_saved_again() -> None:
    store = Kept()
    await Conversations(store, directly).save(full())
    assert TEXT in store.documents["ada"].document
    strict = encrypted(store, RING)
    await assert_unreadable(
        strict, "ada", r"is not encrypted: it is older .* \[state\] accept_clear = true reads such"
    )
    conversations = encrypted(store, RING, accept_clear=True)
    session = await conversations.load("ada")
    await conversations.save(session)
    assert TEXT not in store.documents["ada"].document
    assert (await strict.load("ada")).messages == full().messages


async def test_encrypted_rows_are_read_when_encryption_is_off_again() -> None:
    store = Kept()
    await encrypted(store, RING).save(full())
    conversations = Conversations(store, directly, encryption=Encryption(RING))
    session = await conversations.load("ada")
    assert session.messages == full().messages
    await conversations.save(session)
    assert store.documents["ada"].document.startswith("{")


DEEP = '{"state": {"x": ' + "[" * 100_000 + "]" * 100_000 + "}}"


@pytest.mark.parametrize(
    "document",
    ["{", '{"messages": 5}', f'{{"messages": [{{"role": "{TEXT}"}}]}}', pytest.param(DEEP, id="deep")],
)
async def test_a_damaged_clear_row_names_the_session(document: str) -> None:
    store = Kept()
    store.documents["ada"] = Stored(document, "r")
    await assert_unreadable(Conversations(store, directly), "ada", "is damaged")


@pytest.mark.parametrize("id", ["", " ", "a\nb", "a\0", "x" * 201, 5, "\ud800"])
async def test_an_id_is_checked(id: Any) -> None:
    conversations = Conversations(Kept(), directly)
    for call in (conversations.load(id), conversations.save(Session(id)), conversations.delete(id)):
        with pytest.raises(ConfigError, match="a session's id is text of 1 to 200 printable characters"):
            await call


async def test_a_state_without_a_json_form_is_told_and_not_shown() -> None:
    conversations = Conversations(Kept(), directly)
    with pytest.raises(
        ConfigError, match="the session 'ada' cannot be stored: its state must have a JSON form"
    ):
        await conversations.save(Session("ada", state={"x": object()}))
    with pytest.raises(ConfigError, match="surrogates not allowed") as caught:
        await conversations.save(Session("ada", state={"x": f"{TEXT} \ud800"}))
    assert TEXT not in str(caught.value)
    assert caught.value.__context__ is None


async def test_encrypt_without_keys_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="there is no Encryption"):
        Conversations(Kept(), directly, encrypt=True)


# --- in a runtime --------------------------------------------------------------------------------------


class Bot(Agent):
    model = "scripted:echo"


def config(path: Path, *keys: str, **state: Any) -> Config:
    tables: dict[str, Any] = {"state": {"path": str(path), **state}}
    if keys:
        tables["encryption"] = {"keys": [f"secret://env/{key}" for key in keys]}
    return Config(tables)


def runtime(settings: Config) -> Runtime:
    return Runtime(settings, models={"scripted": Scripted()})


async def test_a_conversation_goes_on_in_another_runtime(tmp_path: Path) -> None:
    settings = config(tmp_path / "state.db")
    for turn in range(3):
        async with runtime(settings) as rt, rt.conversations.open("ada") as session:
            assert len(session.messages) == 2 * turn
            await rt.run(Bot, f"turn {turn}", session=session)
    async with runtime(settings) as rt:
        session = await rt.conversations.load("ada")
        assert [m.content for m in session.messages if m.role == "user"] == ["turn 0", "turn 1", "turn 2"]
        assert [entry.id for entry in await rt.conversations.list()] == ["ada"]


async def test_the_file_has_no_plaintext(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("K1", new_key())
    path = tmp_path / "state.db"
    settings = config(path, "K1", encrypt=True)
    async with runtime(settings) as rt:
        async with rt.conversations.open("ada") as session:
            session.state["STATE OF ADA"] = 1
            await rt.run(Bot, TEXT, session=session)
        everything = b"".join(entry.read_bytes() for entry in tmp_path.iterdir())
        assert b"art1" in everything
        for secret in (b"ADA LIKES", b"RED WINE", b"STATE OF ADA", b"messages", b"role"):
            assert secret not in everything
    assert b"ADA LIKES" not in path.read_bytes()
    async with runtime(settings) as rt:
        session = await rt.conversations.load("ada")
        assert session.messages[0].content == TEXT
        assert session.state == {"STATE OF ADA": 1}


async def test_after_the_migration_the_file_has_no_plaintext(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("K1", new_key())
    path = tmp_path / "state.db"
    async with runtime(config(path)) as rt, rt.conversations.open("ada") as session:
        await rt.run(Bot, TEXT * 500, session=session)
    assert b"ADA LIKES" in path.read_bytes()
    moving = config(path, "K1", encrypt=True, accept_clear=True)
    async with runtime(moving) as rt, rt.conversations.open("ada") as session:
        assert session.messages[0].content == TEXT * 500
    assert b"ADA LIKES" not in b"".join(entry.read_bytes() for entry in tmp_path.iterdir())


async def test_a_tampered_file_gives_an_error_that_names_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("K1", new_key())
    path = tmp_path / "state.db"
    settings = config(path, "K1", encrypt=True)
    async with runtime(settings) as rt, rt.conversations.open("ada") as session:
        await rt.run(Bot, TEXT, session=session)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE documents SET document = substr(document, 1, 150) || 'x' || substr(document, 152)")
    db.close()
    async with runtime(settings) as rt:
        await assert_unreadable(rt.conversations, "ada", "cannot be decrypted")


async def test_keys_that_are_missing_are_told_when_the_runtime_is_made(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"state.encrypt is true, but there is no key: set \[encryption\] keys"
    ):
        config(tmp_path / "x.db", encrypt=True)


async def test_a_key_in_the_configuration_is_refused_and_not_shown() -> None:
    key = new_key()
    for keys in (key, [key], ["secret://env/K", key]):
        with pytest.raises(ConfigError, match="a key never stands in a configuration file") as caught:
            Config({"encryption": {"keys": keys}})
        assert key not in str(caught.value)
    with pytest.raises(ConfigError, match="keys"):
        Config({"encryption": {"keys": 5}})


async def test_a_bad_key_is_told_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tmp_path / "state.db", "K1", encrypt=True)
    async with runtime(settings) as rt:
        with pytest.raises(SecretNotFound, match="K1 is not set"):
            await rt.conversations.load("ada")
        monkeypatch.setenv("K1", "hunter2 hunter2")
        rt.secrets.invalidate()
        with pytest.raises(ConfigError, match="secret://env/K1 must be base64 of 32 random bytes") as caught:
            await rt.conversations.load("ada")
        assert "hunter2" not in str(caught.value)
        monkeypatch.setenv("K1", new_key())
        rt.secrets.invalidate()
        assert (await rt.conversations.load("ada")).messages == []


async def test_an_option_that_the_store_does_not_have_is_told() -> None:
    rt = runtime(Config({"state": {"pathh": "x"}}))
    with pytest.raises(ConfigError, match=r"\[state\] has no 'pathh'; did you mean 'path'"):
        _ = rt.conversations


async def test_the_store_is_called_through_the_pipeline_and_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Config(
        {
            "state": {"path": str(tmp_path / "state.db")},
            "pipeline": {"retry": {"initial_delay": 0.001}},
        }
    )
    tries: list[str] = []
    real = SqliteState.save

    async def save(self: SqliteState, id: str, document: str, /, **options: Any) -> None:
        tries.append(options["revision"])
        await real(self, id, document, **options)
        if len(tries) == 1:
            raise TransientError("the answer was lost")

    monkeypatch.setattr(SqliteState, "save", save)
    async with runtime(settings) as rt:
        await rt.conversations.save(Session("ada", state={"n": 1}))
        assert len(tries) == 2
        assert tries[0] == tries[1]
        assert (await rt.conversations.load("ada")).state == {"n": 1}


async def test_concurrent_first_uses_open_the_store_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("K1", new_key())
    asked: list[str] = []

    async with runtime(config(tmp_path / "state.db", "K1", encrypt=True)) as rt:
        real = rt.conversations._prepare
        assert real is not None

        async def prepare() -> Encryption | None:
            asked.append("")
            await asyncio.sleep(0)
            return await real()

        rt.conversations._prepare = prepare
        await asyncio.gather(*(rt.conversations.load(str(number)) for number in range(20)))
        assert len(asked) == 1


async def test_a_load_that_is_cancelled_leaves_the_store_usable(tmp_path: Path) -> None:
    async with runtime(config(tmp_path / "state.db")) as rt:
        loading = asyncio.create_task(rt.conversations.load("ada"))
        await asyncio.sleep(0)
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        async with rt.conversations.open("ada") as session:
            session.state["n"] = 1
        assert (await rt.conversations.load("ada")).state == {"n": 1}


async def test_a_closed_runtime_opens_no_store(tmp_path: Path) -> None:
    rt = runtime(config(tmp_path / "state.db"))
    await rt.aclose()
    with pytest.raises(ConfigError, match="this runtime is closed"):
        _ = rt.conversations
