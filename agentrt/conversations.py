"""Stored conversations: sessions that outlive the process, encrypted if the configuration says so.

    async with runtime.conversations.open("ada") as session:
        result = await runtime.run(agent, "hi", session=session)

A store (a plugin of the group `agentrt.state`) sees documents and ids only. A clear document is JSON; an encrypted one
is a token of `agentrt.security.encryption` whose context is the name of the store and the session's id, so that no row
can be put into another session or another store.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec
from msgspec import Struct

from agentrt import threads
from agentrt.config import Config
from agentrt.errors import AgentrtError, ConfigError
from agentrt.models.protocol import Message
from agentrt.plugins import Host, close_plugin, open_plugin
from agentrt.session import Session
from agentrt.state.protocol import MAX_ID, Entry, StateStore, Stored

if TYPE_CHECKING:
    from agentrt.security.encryption import Encryption

__all__ = ["Conversations", "Invoke", "SessionUnreadable", "encryption_of"]

T = TypeVar("T")

GROUP = "agentrt.state"
THREAD_BYTES = 262_144
"""Longer documents are encrypted in a thread: it takes about a millisecond for every 500 KB."""


class Invoke(Protocol):
    """How the store is called: the runtime's pipeline of kind "state"."""

    def __call__(
        self, kind: str, target: str, fn: Callable[[], Awaitable[T]], /, *, idempotent: bool = False
    ) -> Awaitable[T]: ...


class SessionUnreadable(AgentrtError):
    """What is stored of a session cannot be read. The message names the session, and nothing of what it holds."""


class _Document(Struct, omit_defaults=True):
    messages: list[Message] = []
    state: dict[str, Any] = {}


_decoder = msgspec.json.Decoder(_Document)


class Conversations:
    """Sessions by id. Two who continue one session at a time do not overwrite each other: the second gets
    `StateConflict`.

    `store`: keeps the documents; `name` ("default"): of the store, a part of what encrypted documents are bound to;
    `invoke` calls the store, which calls itself `target`. `encryption`: reads encrypted documents, and with `encrypt`
    (false) writes them. `accept_clear` (false): documents that are not encrypted are read although `encrypt` is on.
    `prepare`: awaited before the first use; it gives the `encryption`.
    """

    def __init__(
        self,
        store: StateStore,
        invoke: Invoke,
        *,
        target: str = "state",
        name: str = "default",
        encryption: Encryption | None = None,
        encrypt: bool = False,
        accept_clear: bool = False,
        prepare: Callable[[], Awaitable[Encryption | None]] | None = None,
    ) -> None:
        if encrypt and encryption is None and prepare is None:
            raise ConfigError(
                "stored conversations cannot be encrypted: there is no Encryption; give encryption="
            )
        self._store = store
        self._invoke = invoke
        self._target = target
        self._name = name
        self._encryption = encryption
        self._encrypt = encrypt
        self._accept_clear = accept_clear
        self._prepare = prepare
        self._preparing = asyncio.Lock()

    @classmethod
    def from_config(
        cls,
        config: Config,
        invoke: Invoke,
        *,
        secret: Callable[[str], Awaitable[str]],
        host: Host | None = None,
    ) -> Conversations:
        """With the store of [state]; at its first use it is opened, and `secret` resolves the keys of [encryption].

        Raises `ConfigError` and `PluginError` for the store; the first use also for the keys, and the errors of the
        secrets' provider.
        """
        section, table = config.state, config.state_store()
        store = table.make()

        async def prepare() -> Encryption | None:
            encryption = await encryption_of(config, secret)
            if host is not None:
                await open_plugin(GROUP, table.plugin, store, host)
            return encryption

        return cls(
            store,
            invoke,
            target=f"state:{table.plugin}",
            name=section.name,
            encrypt=section.encrypt,
            accept_clear=section.accept_clear,
            prepare=prepare,
        )

    async def load(self, id: str) -> Session:
        """The session of this id: a new one if none is stored.

        Raises `SessionUnreadable` for one that was changed outside of here, or needs a key that is not there.
        """
        id = _checked(id)
        stored = await self._call(lambda: self._store.load(id))
        if stored is None:
            return Session(id=id)
        document = _decoded(await self._opened(id, stored))
        if document is None:
            raise SessionUnreadable(
                f"the stored session {id!r} is damaged, or was written by a newer agentrt: delete it, or give another "
                "id"
            )
        return Session(id, document.messages, document.state, stored.revision)

    async def save(self, session: Session) -> None:
        """Store a session, over the revision that it was loaded or last saved as.

        Raises `StateConflict` if somebody else has saved or deleted it meanwhile, `ConfigError` if its state has no
        JSON form.
        """
        id = _checked(session.id)
        await self._ready()
        document = await self._sealed(id, _encoded(session))
        revision, replaces = os.urandom(8).hex(), session.revision
        await self._call(lambda: self._store.save(id, document, revision=revision, replaces=replaces))
        session.revision = revision

    @contextlib.asynccontextmanager
    async def open(self, id: str) -> AsyncGenerator[Session]:
        """`async with conversations.open(id) as session`: loaded, and saved at the end if the block did not raise."""
        session = await self.load(id)
        yield session
        await self.save(session)

    async def delete(self, id: str) -> bool:
        """Delete a session; False if none is stored."""
        id = _checked(id)
        return await self._call(lambda: self._store.delete(id))

    async def list(self, prefix: str = "", *, limit: int = 100) -> list[Entry]:
        """Up to `limit` stored sessions whose ids begin with `prefix`, the last saved first. Nothing is decrypted."""
        return await self._call(lambda: self._store.list(prefix, limit=limit))

    async def aclose(self) -> None:
        """Close the store, if it was used."""
        if self._prepare is None:
            await close_plugin(self._store)

    # --- inside ----------------------------------------------------------------------------------------

    async def _ready(self) -> None:
        async with self._preparing:
            if self._prepare is not None:
                self._encryption = await self._prepare()
                self._prepare = None

    async def _call(self, function: Callable[[], Awaitable[T]]) -> T:
        await self._ready()
        return await self._invoke("state", self._target, function, idempotent=True)

    def _context(self, id: str) -> bytes:
        return msgspec.json.encode(["agentrt session", self._name, id])

    async def _sealed(self, id: str, data: bytes) -> str:
        encryption = self._encryption
        if not self._encrypt or encryption is None:
            return data.decode()
        return await _aside(len(data), lambda: encryption.encrypt(data, context=self._context(id)))

    async def _opened(self, id: str, stored: Stored) -> str | bytes:
        """The document in clear. When this raises, no variable but `stored` has it, which does not show itself."""
        if stored.document.startswith("{"):
            if self._encrypt and not self._accept_clear:
                raise SessionUnreadable(
                    f"the stored session {id!r} is not encrypted: it is older than [state] encrypt, or somebody else "
                    "wrote it; [state] accept_clear = true reads such while you move to encryption"
                )
            return stored.document
        encryption = self._encryption
        if encryption is None:
            raise SessionUnreadable(
                f"the stored session {id!r} is encrypted: set the keys in [encryption] keys"
            )
        from agentrt.security.encryption import DecryptionFailed

        try:
            return await _aside(
                len(stored.document), lambda: encryption.decrypt(stored.document, context=self._context(id))
            )
        except DecryptionFailed:
            raise SessionUnreadable(
                f"the stored session {id!r} cannot be decrypted: it was changed outside of agentrt, belongs to another "
                "session or another [state] name, or its key is not in [encryption] keys"
            ) from None


async def encryption_of(config: Config, secret: Callable[[str], Awaitable[str]]) -> Encryption | None:
    """With the keys of [encryption], which `secret` resolves; None if there are none. Raises `ConfigError` for what is
    no key, and what `secret` raises."""
    if not config.encryption.references:
        return None
    from agentrt.security.encryption import Encryption
    from agentrt.security.keys import KeyRing

    try:
        ring = await KeyRing.from_references(config.encryption.references, secret)
    except ConfigError as error:
        raise config.where("encryption.keys").error(f"[encryption] keys: {error}") from error
    except AgentrtError as error:  # of the provider: it names the reference, but not who wants it
        note = f"it is one of [encryption] keys ({config.origin('encryption.keys')})"
        if note not in getattr(error, "__notes__", ()):  # a failure may be remembered
            error.add_note(note)
        raise
    return Encryption(ring)


async def _aside(size: int, work: Callable[[], T]) -> T:
    """In a thread, if it takes long."""
    return work() if size <= THREAD_BYTES else await threads.shared().run(work, name="agentrt encryption")


def _decoded(data: str | bytes) -> _Document | None:
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None  # its words may quote the data


def _encoded(session: Session) -> bytes:
    try:
        return msgspec.json.encode(_Document(session.messages, session.state))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        # Its words may quote text: of a UnicodeEncodeError only the reason is told.
        why = error.reason if isinstance(error, UnicodeEncodeError) else str(error)
    raise ConfigError(f"the session {session.id!r} cannot be stored: its state must have a JSON form: {why}")


def _checked(id: str) -> str:
    if not isinstance(id, str) or not id.strip() or len(id) > MAX_ID or not id.isprintable():
        raise ConfigError(f"a session's id is text of 1 to {MAX_ID} printable characters, not {id!r:.100}")
    return id
