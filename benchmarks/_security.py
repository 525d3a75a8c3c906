"""What `security` measures: cases of one thing and its peers, and the proof that each does what it is for."""

from __future__ import annotations

import asyncio
import importlib
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
from _measure import Invalid, Repeat
from cryptography.exceptions import InvalidTag
from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from agentrt.errors import AgentrtError
from agentrt.secrets.manager import SecretsManager
from agentrt.secrets.protocol import SecretRef
from agentrt.security.audit import AuditLog
from agentrt.security.audit.checkpoints import PublicKey
from agentrt.security.audit.verify import verify
from agentrt.security.encryption import Encryption
from agentrt.security.files import FileAccess
from agentrt.security.keys import KeyRing
from agentrt.security.rate_limits import RateLimiter

PEERS = ("tink",)
"""Packages that only the benchmark's own environment has."""


def sync(function: Callable[[], object]) -> Repeat:
    async def loop(calls: int) -> None:
        for _ in range(calls):
            function()

    return loop


def awaited(function: Callable[[], Awaitable[object]]) -> Repeat:
    async def loop(calls: int) -> None:
        for _ in range(calls):
            await function()

    return loop


def installed(wanted: bool) -> tuple[list[str], dict[str, str]]:
    """The peers that are here, and why the others are not."""
    here: list[str] = []
    absent: dict[str, str] = {}
    for name in PEERS if wanted else ():
        try:
            importlib.import_module(name)
        except ImportError as error:
            absent[name] = str(error)
        else:
            here.append(name)
    return here, absent


# --- secrets -------------------------------------------------------------------------------------------


class Provider:
    """Counts what it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    async def get(self, ref: SecretRef, /) -> str:
        self.calls += 1
        await asyncio.sleep(0)
        return f"value of {ref.name}"


class TtlDict:
    """The least that a cache with an end can do: no lock, no single flight, nothing stale, nothing hidden."""

    def __init__(self, ttl: float) -> None:
        self._ttl = ttl
        self._kept: dict[str, tuple[str, float]] = {}

    async def get(self, name: str) -> str:
        value, until = self._kept.get(name, ("", 0.0))
        if asyncio.get_running_loop().time() < until:
            return value
        value = f"value of {name}"
        self._kept[name] = value, asyncio.get_running_loop().time() + self._ttl
        return value


class Secrets:
    REFERENCE = "secret://here/name"

    def __init__(self) -> None:
        self.provider = Provider()
        self.manager = SecretsManager({"here": self.provider}, self._invoke)
        self._plain = {self.REFERENCE: "value of name"}
        self._ttl = TtlDict(3600.0)

    async def _invoke(
        self, kind: str, target: str, fn: Callable[[], Awaitable[Any]], /, *, idempotent: bool = False
    ) -> Any:
        return await fn()

    def cases(self) -> dict[str, Repeat]:
        async def plain() -> str:
            return self._plain[self.REFERENCE]

        return {
            "dict": awaited(plain),
            "ttl_dict": awaited(lambda: self._ttl.get(self.REFERENCE)),
            "cached_secret": awaited(lambda: self.manager.get(self.REFERENCE)),
        }

    async def prove(self) -> None:
        """All the reads were one call; so are 500 at a time of a cold one; and it is fetched anew when told to."""
        if self.provider.calls != 1:
            raise Invalid(f"the cached secret was fetched {self.provider.calls} times")
        secret = await self.manager.get(self.REFERENCE)
        if secret.reveal() != "value of name" or "value" in f"{secret!r} {secret}":
            raise Invalid("the cached secret is not the secret, or it shows itself")
        await asyncio.gather(*(self.manager.get("secret://here/cold") for _ in range(500)))
        if self.provider.calls != 2:
            raise Invalid(f"500 cold reads were {self.provider.calls - 1} calls")
        self.manager.invalidate(self.REFERENCE)
        await self.manager.get(self.REFERENCE)
        if self.provider.calls != 3:
            raise Invalid("an invalidated secret was not fetched anew")
        await self.manager.aclose()


# --- encryption ----------------------------------------------------------------------------------------

Encrypt = Callable[[bytes, bytes], Any]
Decrypt = Callable[[Any, bytes], bytes]


def _ours() -> tuple[Encrypt, Decrypt]:
    encryption = Encryption(KeyRing.generate())
    return (
        lambda data, context: encryption.encrypt(data, context=context),
        lambda token, context: encryption.decrypt(token, context=context),
    )


def _aesgcm() -> tuple[Encrypt, Decrypt]:
    key = AESGCM(AESGCM.generate_key(256))

    def encrypt(data: bytes, context: bytes) -> bytes:
        nonce = os.urandom(12)
        return nonce + key.encrypt(nonce, data, context)

    return encrypt, lambda sealed, context: key.decrypt(sealed[:12], sealed[12:], context)


def _fernet() -> tuple[Encrypt, Decrypt]:
    fernet = Fernet(Fernet.generate_key())
    return lambda data, context: fernet.encrypt(data), lambda token, context: fernet.decrypt(token)


def _tink() -> tuple[Encrypt, Decrypt]:
    import tink
    from tink import aead

    aead.register()
    handle = tink.new_keyset_handle(aead.aead_key_templates.AES256_GCM)
    primitive = handle.primitive(aead.Aead)
    return primitive.encrypt, primitive.decrypt


CIPHERS = {"encryption": _ours, "aesgcm": _aesgcm, "fernet": _fernet, "tink": _tink}


class Ciphers:
    """Ours and peers on texts of `size` bytes."""

    CONTEXT = b"notes/17"

    def __init__(self, names: list[str], size: int) -> None:
        self.size = size
        self.data = os.urandom(size)
        self.made = {name: CIPHERS[name]() for name in names}
        self.tokens = {name: encrypt(self.data, self.CONTEXT) for name, (encrypt, _) in self.made.items()}

    def cases(self) -> dict[str, Repeat]:
        found: dict[str, Repeat] = {}
        for name, (encrypt, decrypt) in self.made.items():
            token = self.tokens[name]
            found[f"encrypt_{name}"] = sync(lambda encrypt=encrypt: encrypt(self.data, self.CONTEXT))  # type: ignore[misc]
            found[f"decrypt_{name}"] = sync(lambda decrypt=decrypt, token=token: decrypt(token, self.CONTEXT))  # type: ignore[misc]
        return found

    def prove(self) -> None:
        """Each gives back what it took, and refuses what was changed; ours refuses another context as well."""
        for name, (_, decrypt) in self.made.items():
            token = self.tokens[name]
            if decrypt(token, self.CONTEXT) != self.data:
                raise Invalid(f"{name} does not give back what it took")
            flip = "A" if isinstance(token, str) else b"A"
            middle = len(token) // 2
            if token[middle : middle + 1] == flip:
                flip = "B" if isinstance(token, str) else b"B"
            if not _refuses(decrypt, token[:middle] + flip + token[middle + 1 :], self.CONTEXT):
                raise Invalid(f"{name} takes what was changed")
            if name != "fernet" and not _refuses(decrypt, token, b"notes/18"):
                raise Invalid(f"{name} takes what belongs elsewhere")


def _refuses(decrypt: Decrypt, token: Any, context: bytes) -> bool:
    try:
        decrypt(token, context)
    except (AgentrtError, InvalidTag, InvalidToken):
        return True
    except Exception as error:
        return type(error).__name__ == "TinkError"
    return False


# --- files ---------------------------------------------------------------------------------------------


class Jail:
    """Opening and closing a file two folders below a root."""

    PATH = "a/b/file.txt"

    def __init__(self, folder: Path) -> None:
        root = folder / "root"
        (root / "a" / "b").mkdir(parents=True)
        (root / self.PATH).write_bytes(b"inside")
        (folder / "outside.txt").write_bytes(b"outside")
        (root / "a" / "link").symlink_to(folder / "outside.txt")
        self._root = str(root)
        self.ours = {"jail_open": FileAccess(root, mode="read")}
        if self.ours["jail_open"].resolution != "walk":
            self.ours["jail_open_walk"] = FileAccess(root, mode="read", resolution="walk")

    def cases(self) -> dict[str, Repeat]:
        plain, root = os.path.join(self._root, self.PATH), self._root + os.sep

        def checked() -> None:
            """What people write, and what a rename in between gets past."""
            real = os.path.realpath(os.path.join(root, self.PATH))
            if not real.startswith(root):
                raise Invalid("realpath leads elsewhere")
            open(real, "rb").close()

        cases = {"open": sync(lambda: open(plain, "rb").close()), "realpath_open": sync(checked)}
        for name, access in self.ours.items():
            cases[name] = sync(lambda access=access: access.open_read(self.PATH).close())  # type: ignore[misc]
        return cases

    def prove(self) -> None:
        """The file is the right one, and nothing outside is opened by any of the usual ways."""
        for name, access in self.ours.items():
            with access.open_read(self.PATH) as file:
                if file.read() != b"inside":
                    raise Invalid(f"{name} opened another file")
            for path in ("../outside.txt", "a/../../outside.txt", "a/link", "/etc/passwd"):
                try:
                    access.open_read(path).close()
                except AgentrtError:
                    continue
                raise Invalid(f"{name} opened {path}")

    def close(self) -> None:
        for access in self.ours.values():
            access.close()


# --- rate limits ---------------------------------------------------------------------------------------


class RateChecks:
    """Hits that are allowed, each key in turn far below its limit, and hits of a key that is at its limit."""

    KEYS = 1000
    LIMIT = 100
    WINDOW = 3600.0

    def __init__(self) -> None:
        from limits import RateLimitItemPerHour
        from limits.storage import MemoryStorage
        from limits.strategies import MovingWindowRateLimiter

        self.limiter = RateLimiter()
        self._peer = MovingWindowRateLimiter(MemoryStorage())
        self._item = RateLimitItemPerHour(self.LIMIT)
        self._wide = RateLimitItemPerHour(1_000_000)
        self._number = 0

    def _key(self) -> str:
        self._number = (self._number + 1) % self.KEYS
        return f"key{self._number}"

    def cases(self) -> dict[str, Repeat]:
        check, hit, stats = self.limiter.check_rate_limit, self._peer.hit, self._peer.get_window_stats

        def both(item: Any, key: str) -> None:
            hit(item, key)
            stats(item, key)

        return {
            "key": sync(self._key),
            "rate_check": awaited(lambda: check(self._key(), 1_000_000, self.WINDOW)),
            "limits": sync(lambda: both(self._wide, self._key())),
            "limits_hit": sync(lambda: hit(self._wide, self._key())),
            "rate_check_refused": awaited(lambda: check("full", self.LIMIT, self.WINDOW)),
            "limits_refused": sync(lambda: both(self._item, "full")),
        }

    async def prove(self) -> None:
        """Of 1,000 hits at once exactly 100 are allowed, and the rest are told when to come back."""
        decisions = await asyncio.gather(
            *(self.limiter.check_rate_limit("fresh", self.LIMIT, self.WINDOW) for _ in range(1000))
        )
        allowed = sum(map(bool, decisions))
        theirs = sum(self._peer.hit(self._item, "fresh") for _ in range(1000))
        if allowed != self.LIMIT or theirs != self.LIMIT:
            raise Invalid(f"of 1,000 hits {allowed} were allowed, and {theirs} by limits, not {self.LIMIT}")
        if not 0 < decisions[-1].retry_after <= self.WINDOW:
            raise Invalid("a refused hit was not told when to come back")
        await self.limiter.aclose()


# --- audit ---------------------------------------------------------------------------------------------


class Audit:
    """Records of operations, an intent and an outcome each, until they are on the disk; and their verification."""

    def __init__(self, folder: Path) -> None:
        key = Ed25519PrivateKey.generate()
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self._public = PublicKey(key.public_key().public_bytes_raw().hex(), name="the benchmark's key")
        self._path = folder / "audit.jsonl"
        self._plain = folder / "plain.jsonl"
        self.log = AuditLog(self._path, signing_key=pem, key=os.urandom(32), rotation=None)
        self.operations = 0
        self._lines = [b"{}"]

    async def open(self) -> None:
        """Open the log, and take what a record of it looks like for the plain lines."""
        await self.log.open()
        await self.append(100)
        records = [msgspec.json.decode(line) for line in self._path.read_bytes().splitlines()]
        self._records = [
            {name: value for name, value in record.items() if name not in ("prev", "hash")}
            for record in records
            if record.get("action") == "tool.call"
        ]

    async def append(self, operations: int) -> None:
        """As the stage does it; the last intent waits until everything before it is on the disk."""
        for number in range(operations):
            operation = self.log.intent("tool.call", "tool:search", arguments={"query": "wine", "n": number})
            operation.ended()
            if number % 1000 == 999:
                await self._on_disk()
        await self._on_disk()
        self.operations += operations

    async def _on_disk(self) -> None:
        (await self.log.durable_intent("tool.call", "tool:search")).ended()
        self.operations += 1

    async def write_plainly(self, operations: int) -> None:
        """The same records as JSON lines, synced once at the end."""
        encode, records = msgspec.json.encode, self._records
        with self._plain.open("ab") as file:
            for number in range(operations):
                file.write(encode(records[2 * number % len(records)]) + b"\n")
                file.write(encode(records[(2 * number + 1) % len(records)]) + b"\n")
            file.flush()
            os.fdatasync(file.fileno())

    async def close(self) -> int:
        """Close the log; how many lines it has."""
        await self.log.aclose(60.0)
        self._lines = self._path.read_bytes().splitlines()
        return len(self._lines)

    def verify(self) -> Any:
        return verify(self._path, public_key=self._public)

    def read_plainly(self) -> None:
        """What reading the lines costs alone."""
        decode = msgspec.json.decode
        with self._path.open("rb") as file:
            for line in file:
                decode(line)

    def prove(self) -> None:
        """Every record is there, signed, and a changed one is found."""
        statistics = self.log.statistics
        if statistics.lost or statistics.refused:
            raise Invalid(f"{statistics.lost} records were lost, {statistics.refused} operations refused")
        actions = sum(b'"tool.call"' in line for line in self._lines)
        if actions != 2 * self.operations:
            raise Invalid(f"{actions} records are there, of {2 * self.operations}")
        report = self.verify()
        if not report.ok or report.records != len(self._lines) or not report.signed_through:
            raise Invalid(f"the log does not verify: {report.problems[:1]}")
        whole = self._path.read_bytes()
        middle = whole.index(b'"tool:search"', len(whole) // 2)
        self._path.write_bytes(whole[: middle + 1] + b"T" + whole[middle + 2 :])
        if self.verify().ok:
            raise Invalid("a changed record was not found")


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for what is written."""
    return tempfile.TemporaryDirectory(prefix="agentrt-bench-")


async def seconds(work: Callable[[], Awaitable[object]]) -> float:
    """How long it takes, on the wall."""
    started = time.perf_counter()
    await work()
    return time.perf_counter() - started
