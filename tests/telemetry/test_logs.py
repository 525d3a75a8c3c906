"""Logs of a process that is ours: what a line holds, where it goes, what it must not hold, and what fails quietly."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from loguru import logger as loguru_logger

from agentrt import Runtime, current
from agentrt.call import RUN
from agentrt.config import Config
from agentrt.config.sections import LogOutput, LogSection
from agentrt.errors import ConfigError
from agentrt.telemetry.log_format import MAX_TEXT, log_line
from agentrt.telemetry.logs import Logs, RootHandler, not_forwarded
from agentrt.telemetry.redaction import Redactor
from agentrt.telemetry.signals import LogLine

SECRET = "hunter2-correct-horse"
TRACE = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")


class Screen:
    """A console that keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str, /) -> None:
        self.lines.append(text)

    def style(self, text: str, /, *styles: str) -> str:
        return text

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


class Shown:
    """A value that logs when it is shown."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self.log = log

    def __repr__(self) -> str:
        self.log("shown")
        return "Shown()"


Open = Callable[..., Logs]


@pytest.fixture
def screen() -> Screen:
    return Screen()


@pytest.fixture
def opened(screen: Screen) -> Iterator[Open]:
    root = logging.getLogger()
    level = root.level
    made: list[Logs] = []

    def open_(section: LogSection | None = None, **more: Any) -> Logs:
        logs = Logs(section, console=screen, **more)
        logs.open()
        made.append(logs)
        return logs

    yield open_
    for logs in made:
        logs.close(5)
    assert not any(isinstance(handler, RootHandler) for handler in root.handlers)
    assert root.level == level


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "agent.jsonl"


def to(path: Path, **more: Any) -> LogSection:
    return LogSection(outputs=[LogOutput(to=str(path))], **more)


def written(logs: Logs, path: Path) -> list[dict[str, Any]]:
    assert logs.flush(10)
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- what a line holds -----------------------------------------------------------------------------------


def test_a_line_of_json_has_everything(opened: Open, path: Path) -> None:
    logs = opened(to(path), service="shop", ids=lambda: TRACE)
    logging.getLogger("shop.cart").info("%d items", 3, extra={"user": 7, "tags": ["a", "b"]})
    (line,) = written(logs, path)
    moment = line.pop("time")
    assert moment.endswith("Z")
    assert len(moment) == len("2026-11-24T08:55:01.123456Z")
    assert line == {
        "level": "info",
        "service": "shop",
        "logger": "shop.cart",
        "message": "3 items",
        "trace_id": TRACE[0],
        "span_id": TRACE[1],
        "context": {"user": 7, "tags": ["a", "b"]},
    }


async def _log_in_run(message: str) -> str:
    current().log("info", "inside", step=1)
    logging.getLogger("lib").warning("a library's")
    return message


@pytest.mark.asyncio
async def test_lines_inside_a_run_name_it_and_its_agent(opened: Open, path: Path) -> None:
    logs = opened(to(path))
    async with Runtime() as runtime:
        result = await runtime.run(_log_in_run, "hi")
    lines = {line["logger"]: line for line in written(logs, path)}
    ours, theirs = lines["agentrt.run"], lines["lib"]
    assert (ours["message"], ours["context"], ours["logger"]) == ("inside", {"step": 1}, "agentrt.run")
    assert ours["run"] == theirs["run"] == result.run_id
    assert ours["agent"] == theirs["agent"] == "_log_in_run"
    assert RUN.get() is None


@pytest.mark.parametrize("name", ["agentrt.run", "agentrt.runs"])
def test_a_record_about_a_run_may_come_from_outside_of_it(opened: Open, path: Path, name: str) -> None:
    logs = opened(to(path))
    extra = {"run": "r1", "agent": "Shop", "context": {"seconds": 2}}
    logging.getLogger(name).info("run started", extra=extra)
    logging.getLogger("lib").info("a library's own words", extra=extra)
    ours, theirs = written(logs, path)
    assert (ours["run"], ours["agent"], ours["context"]) == ("r1", "Shop", {"seconds": 2})
    assert theirs["context"] == extra
    assert "run" not in theirs


def test_an_exception_is_in_its_line(opened: Open, path: Path) -> None:
    logs = opened(to(path))
    try:
        raise ValueError("no")
    except ValueError:
        logging.getLogger("lib").exception("failed")
    (line,) = written(logs, path)
    assert line["level"] == "error"
    assert line["exception"].startswith("Traceback (most recent call last):\n")
    assert line["exception"].endswith("ValueError: no")


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError("no text")


def test_a_value_without_json_becomes_text(opened: Open, path: Path) -> None:
    logs = opened(to(path))
    inside: dict[Any, Any] = {"n": float("inf"), 1: 2**80}
    inside["itself"] = inside
    values = {
        "a": Broken(),
        "b": inside,
        "c": "\ud800",
        "d": b"\xff",
        "e": float("nan"),
        "f": threading.Lock(),
    }
    logging.getLogger("lib").info("odd \udfff", extra=values)
    (line,) = written(logs, path)
    context = line["context"]
    assert context["a"] == "<Broken, whose repr raises RuntimeError>"
    assert context["b"] == {"n": "inf", "1": str(2**80), "itself": "[inside itself]"}
    assert context["e"] == "nan"
    assert "lock" in context["f"]


def test_what_is_too_long_is_cut(opened: Open, path: Path) -> None:
    logs = opened(to(path))
    try:
        raise ValueError("x" * 200_000 + "THE END")
    except ValueError:
        logging.getLogger("lib").exception("é" * 200_000, extra={"big": "y" * 200_000, "n": 5})
    (line,) = written(logs, path)
    for text in (line["message"], json.dumps(line["context"]), line["exception"]):
        assert MAX_TEXT // 2 < len(text.encode()) < MAX_TEXT * 1.2
    assert line["context"]["n"] == 5
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("THE END")


def test_a_context_is_of_its_moment(opened: Open, path: Path) -> None:
    logs = opened(to(path))
    basket = ["apple"]
    logging.getLogger("lib").info("x", extra={"basket": basket})
    basket.append("pear")
    assert written(logs, path)[0]["context"] == {"basket": ["apple"]}


@pytest.mark.parametrize("name", ["agent.jsonl", "agent.log"])
def test_a_newline_begins_no_line(opened: Open, tmp_path: Path, name: str) -> None:
    logs = opened(to(tmp_path / name))
    logging.getLogger("lib").info("one\ntwo\r\x1b[2J\u2028", extra={"a": "x\ny", "b\nc": 1})
    assert logs.flush(10)
    data = (tmp_path / name).read_bytes()
    assert data.count(b"\n") == 1
    assert b"\x1b" not in data


def test_a_line_of_text_has_everything(opened: Open, tmp_path: Path) -> None:
    logs = opened(to(tmp_path / "agent.log"), service="shop", ids=lambda: TRACE)
    try:
        raise ValueError("forged\n2026-01-01T00:00:00.000000Z ERROR x: y")
    except ValueError:
        logging.getLogger("lib").exception("failed", extra={"user": "Ada L.", "n": 1, "none": None})
    assert logs.flush(10)
    first, *more = (tmp_path / "agent.log").read_text().splitlines()
    moment, rest = first.split(" ", 1)
    assert moment.endswith("Z")
    assert rest == f'ERROR    shop lib: failed user="Ada L." n=1 none=null trace={TRACE[0]} span={TRACE[1]}'
    assert more[0] == "    Traceback (most recent call last):"
    assert all(line.startswith("    ") for line in more)


def test_arguments_that_do_not_fit_lose_no_line(opened: Open, screen: Screen) -> None:
    opened().take(logging.LogRecord("lib", logging.WARNING, "x.py", 1, "%d", (SECRET,), None))
    assert screen.text == "WARNING lib: %d [its arguments do not fit: TypeError]"


def test_levels_of_others_count_as_the_nearest_below(opened: Open, path: Path) -> None:
    logs = opened(to(path, level="debug"))
    logging.getLogger("lib").log(35, "35")
    loguru_logger.success("done")
    loguru_logger.trace("not shown")
    assert [line["level"] for line in written(logs, path)] == ["warning", "info"]


# --- where it goes ---------------------------------------------------------------------------------------


def test_each_output_has_its_level_and_format(opened: Open, screen: Screen, tmp_path: Path) -> None:
    text, errors = tmp_path / "a.log", tmp_path / "errors.jsonl"
    outputs: list[str | LogOutput] = ["stderr", str(text), LogOutput(to=str(errors), level="error")]
    logs = opened(LogSection(outputs=outputs))
    for level in ("debug", "info", "warning", "error"):
        logging.getLogger("lib").log(getattr(logging, level.upper()), level)
    assert [line["message"] for line in written(logs, errors)] == ["error"]
    assert [line.rpartition(" ")[2] for line in text.read_text().splitlines()] == ["info", "warning", "error"]
    assert screen.lines == ["WARNING lib: warning", "ERROR lib: error"]


def test_levels_of_single_loggers_win(opened: Open, path: Path, screen: Screen) -> None:
    section = LogSection(
        outputs=["stderr", str(path)], levels={"httpx2": "error", "shop": "debug", "agentrt_test": "error"}
    )
    logs = opened(section)
    logging.getLogger("httpx2.client").warning("no")
    logging.getLogger("shop.cart").debug("yes")
    logging.getLogger("lib").debug("no")
    # loguru has no levels of loggers, so that its lines are judged by us; each is of the module that logs it.
    loguru_logger.patch(lambda record: record.update({"name": "agentrt_test.x"})).warning("no")
    loguru_logger.patch(lambda record: record.update({"name": "shop"})).debug("yes")
    assert [line["message"] for line in written(logs, path)] == ["yes", "yes"]
    assert len(screen.lines) == 2


def test_json_and_full_text_on_stderr(opened: Open, screen: Screen) -> None:
    opened(LogSection(format="json"), service="shop").close()
    opened(LogSection(format="json"), service="shop")
    logging.getLogger("lib").warning("one\ntwo")
    assert json.loads(screen.lines[0])["message"] == "one\ntwo"
    opened(LogSection(format="text"), service="shop")
    logging.getLogger("lib").warning("x")
    assert screen.lines[1].endswith("Z WARNING  shop lib: x")


def test_a_line_forged_in_a_message_is_no_line_of_the_terminal_s(opened: Open, screen: Screen) -> None:
    opened()
    logging.getLogger("lib").warning("\x1b[2Jx", extra={"a": "\x1b[2J"})
    assert screen.text == 'WARNING lib: \\x1b[2Jx a="\\u001b[2J"'


def test_loguru_and_the_standard_library_come_out_together_once(
    opened: Open, path: Path, screen: Screen
) -> None:
    logs = opened(LogSection(outputs=["stderr", str(path)]))
    loguru_logger.bind(user=1).warning("{} in loguru", 1)
    logging.getLogger("lib").warning("{} in logging", extra={"user": 2})
    first, second = written(logs, path)
    assert (first["message"], first["logger"], first["context"]) == ("1 in loguru", __name__, {"user": 1})
    assert (second["message"], second["logger"], second["context"]) == ("{} in logging", "lib", {"user": 2})
    assert len(screen.lines) == 2


def test_sinks_that_a_program_adds_to_loguru_get_everything(opened: Open, path: Path) -> None:
    opened(to(path))
    seen: list[Any] = []
    mine = loguru_logger.add(lambda message: seen.append(message.record), level="INFO")
    try:
        raise ValueError("no")
    except ValueError:
        logging.getLogger("lib").exception("failed", extra={"user": 2})
    loguru_logger.remove(mine)
    (record,) = seen
    assert (record["name"], record["extra"], record["level"].name) == ("lib", {"user": 2}, "ERROR")
    assert record["function"] == "test_sinks_that_a_program_adds_to_loguru_get_everything"
    assert isinstance(record["exception"].value, ValueError)


TAKES_LOGURU = """
import logging, sys
from agentrt.config import Config
from agentrt.config.sections import LogOutput, LogSection
from agentrt.telemetry.logs import Logs
from loguru import logger
if {late}:
    logger.remove()
logs = Logs(LogSection(outputs=["./agent.jsonl"]))
logs.open()
logger.remove()
logger.add(sys.stdout, format="mine: {{message}}")
for number in range(3):
    logging.getLogger("lib").info("%d", number)
logger.info("own")
logs.close()
logger.info("after")
"""


@pytest.mark.parametrize("late", [False, True])
def test_a_program_that_takes_loguru_for_itself_keeps_it(tmp_path: Path, late: bool) -> None:
    code = TAKES_LOGURU.format(late=late)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    lines = [json.loads(line)["message"] for line in (tmp_path / "agent.jsonl").read_text().splitlines()]
    assert lines == ["0", "1", "2"]
    # The first line had gone to loguru before it was clear that it has another owner.
    assert done.stdout.splitlines() == [*([] if late else ["mine: 0"]), "mine: own", "mine: after"]
    assert done.stderr == ""


def test_loguru_is_taken_over_when_the_program_has_loaded_it(tmp_path: Path) -> None:
    code = """
import logging, sys
from agentrt.telemetry.logs import Logs
logs = Logs()
logs.open()
logs.adopt_loguru()
assert "loguru" not in sys.modules
from loguru import logger
logs.adopt_loguru()
logger.warning("one")
logger.info("not shown")
logging.getLogger("lib").warning("two")
logs.close()
logger.info("loguru's own again")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second, third = done.stderr.splitlines()
    assert (first, second) == ("WARNING __main__: one", "WARNING lib: two")
    assert third.endswith("- loguru's own again")


def test_a_failing_sink_of_the_program_fails_nobody_who_logs(
    opened: Open, path: Path, screen: Screen
) -> None:
    opened(to(path))

    def sink(_: object) -> None:
        raise ValueError(SECRET)

    mine = loguru_logger.add(sink, catch=False, format="{message}")
    logging.getLogger("lib").info("x")
    loguru_logger.remove(mine)
    assert screen.text == "WARNING agentrt.log: a loguru sink failed: ValueError"


def test_all_is_given_back(path: Path) -> None:
    root, other = logging.getLogger(), logging.getLogger("httpx2")
    before = (root.handlers[:], root.level, other.level)
    logs = Logs(to(path, levels={"httpx2": "debug"}))
    logs.open()
    assert other.level == logging.DEBUG
    logs.close()
    logs.close()
    assert (root.handlers[:], root.level, other.level) == before


def test_there_is_one_at_a_time(opened: Open, screen: Screen) -> None:
    first = opened()
    second = opened()
    logging.getLogger("lib").warning("once")
    assert screen.lines == ["WARNING lib: once"]
    assert (first.is_open, second.is_open) == (False, True)
    assert len([h for h in logging.getLogger().handlers if isinstance(h, RootHandler)]) == 1


# --- what [log] may say ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "log.level=loud",
            "level must be one of 'debug', 'info', 'warning', 'error', 'critical', not 'loud'",
        ),
        ("log.format=xml", "log.format must be one of 'text', 'json' or false (off), not 'xml'"),
        ('log.outputs=["stdout"]', '\'stdout\' is neither "stderr" nor a file such as "./stdout.log"'),
        ('log.outputs=["a/"]', "'a/' is neither"),
        ('log.outputs=["./a.log", "./a.log"]', "'./a.log' stands there twice"),
        ('log.outputs=["stderr", "STDERR"]', "'stderr' stands there twice"),
        ('log.outputs=[{to="a.log", level="loud"}]', "outputs: level must be one of"),
        (
            'log.outputs=[{to="a.log", rotaton=1}]',
            "log.outputs[0] has no 'rotaton'; did you mean 'rotation'?",
        ),
        ('log.outputs=[{to="a.log", rotation="5 XB"}]', "such as \"50 MB\", or false, not '5 XB'"),
        ('log.outputs=[{to="a.log", rotation=999}]', "rotation must be a size of at least 1000 bytes"),
        ('log.outputs=[{to="a.log", rotation=true}]', "rotation must be a size of at least 1000 bytes"),
        ('log.outputs=[{to="a.log", keep=0}]', "keep must be a whole number of at least 1, not 0"),
        ('log.levels={httpx2="loud"}', "levels: httpx2: must be one of"),
        ("log.outputz=[]", "did you mean 'outputs'?"),
    ],
)
def test_a_mistake_is_told_with_its_place(setting: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.load(environ={}, overrides=[setting])
    assert message in str(caught.value)
    assert setting.partition("=")[0] in str(caught.value)


def test_sizes_are_read_with_their_units() -> None:
    sizes = {"1000": 1000, "10 KB": 10_000, "10KiB": 10_240, "2 mb": 2_000_000, "1GB": 1_000_000_000}
    for text, size in sizes.items():
        assert LogOutput(to="./a", rotation=text).max_bytes == size
    assert LogOutput(to="./a", rotation=4096).max_bytes == 4096
    assert LogOutput(to="./a", rotation=False).max_bytes is None


# --- no secrets ------------------------------------------------------------------------------------------


def test_a_planted_secret_is_nowhere(opened: Open, screen: Screen, tmp_path: Path) -> None:
    redactor = Redactor()
    redactor.add(SECRET)
    files = [tmp_path / "a.jsonl", tmp_path / "a.log"]
    section = LogSection(outputs=["stderr", *map(str, files)], level="debug")
    logs = opened(section, redact=redactor.text, redact_attributes=redactor.attributes)
    lines: list[LogLine] = []
    logs.forward_to(lines.append)

    class Client:
        def __repr__(self) -> str:
            return f"Client(key={SECRET})"

    log = logging.getLogger("thirdparty")
    log.info("Authorization: Bearer %s", SECRET)
    log.info(
        "x", extra={"k": SECRET, "deep": {"list": [f"a{SECRET}b", Client()], SECRET: 1}, "client": Client()}
    )
    log.info("%s%s", "x" * (MAX_TEXT - 20), SECRET)
    try:
        raise ValueError("bad key", SECRET)  # the line stands in the traceback, too: "hunter2-correct-horse"
    except ValueError:
        log.exception("failed")
        loguru_logger.exception("failed in loguru")
    loguru_logger.info("the key is {}", SECRET)
    logging.getLogger(f"lib.{SECRET}").warning("x")
    logs.take(logging.LogRecord("lib", logging.WARNING, "x.py", 1, "%d", (SECRET,), None))
    assert logs.flush(10)
    texts = [screen.text, *(file.read_text() for file in files), repr(lines)]
    for text in texts:
        assert SECRET not in text
        assert SECRET[:12] not in text
        assert text.count("failed") >= 2
    assert len(lines) == len(written(logs, files[0])) == 8


def test_a_redaction_that_fails_lets_nothing_through(opened: Open, path: Path, screen: Screen) -> None:
    def redact(text: str) -> str:
        raise RuntimeError(text)

    logs = opened(LogSection(outputs=["stderr", str(path)]), redact=redact)
    for _ in range(2):
        logging.getLogger("lib").warning(SECRET, extra={"a": SECRET})
    assert [line["message"] for line in written(logs, path)] == ["[left out: it could not be redacted]"] * 2
    assert SECRET not in screen.text + path.read_text()
    assert screen.text.count("the redaction failed with RuntimeError") == 1


# --- to the backends -------------------------------------------------------------------------------------


def test_backends_get_each_line_from_info_up(opened: Open) -> None:
    logs = opened(ids=lambda: TRACE)
    lines: list[LogLine] = []
    logs.forward_to(lines.append)
    before = time.time_ns()
    logging.getLogger("lib").debug("no")
    logging.getLogger("lib").info("yes", extra={"n": 1, "deep": {"a": [1]}, "list": ["a"]})
    assert logs.flush(10)
    (line,) = lines
    assert (line.level, line.message, line.logger) == ("info", "yes", "lib")
    assert line.attributes == {"n": 1, "deep": '{"a":[1]}', "list": ["a"]}
    assert (line.trace_id, line.span_id) == TRACE
    assert before - 1e6 <= line.time_ns <= time.time_ns()
    logs.forward_to(None)
    logging.getLogger("lib").warning("no more")
    assert logs.flush(10)
    assert len(lines) == 1


def test_what_exporters_log_is_not_exported(opened: Open, screen: Screen) -> None:
    logs = opened()
    lines: list[LogLine] = []
    logs.forward_to(lines.append)

    async def export() -> None:
        logging.getLogger("urllib3").warning("1")
        await asyncio.gather(asyncio.create_task(_warn("2")), asyncio.to_thread(_warn_plainly, "3"))

    def exporter() -> None:
        not_forwarded()
        asyncio.run(export())

    thread = threading.Thread(target=exporter)
    thread.start()
    thread.join()
    logging.getLogger("agentrt.telemetry").warning("4")
    logging.getLogger("opentelemetry.exporter.otlp").warning("5")
    logging.getLogger("opentelemetry_of_somebody").warning("6")
    assert logs.flush(10)
    assert [line.message for line in lines] == ["6"]
    assert len(screen.lines) == 6


async def _warn(text: str) -> None:
    _warn_plainly(text)


def _warn_plainly(text: str) -> None:
    logging.getLogger("urllib3").warning(text)


def test_a_backend_that_fails_or_logs_feeds_nothing(opened: Open, screen: Screen) -> None:
    logs = opened()
    got: list[LogLine] = []

    def forward(line: LogLine) -> None:
        got.append(line)
        logging.getLogger("lib").warning("forwarding fails")
        raise ValueError(SECRET)

    logs.forward_to(forward)
    for _ in range(3):
        logging.getLogger("lib").info("x")
    assert logs.flush(10)
    assert len(got) == 3
    told = [line for line in screen.lines if "did not reach" in line]
    assert told == ["WARNING agentrt.log: log lines did not reach telemetry: ValueError"]


@pytest.mark.asyncio
async def test_a_line_made_by_hand_knows_its_run() -> None:
    async def agent(message: str) -> str:
        made.append(log_line("warning", "x", {"n": 1, "odd": object}, ids=lambda: TRACE))
        return message

    made: list[LogLine] = []
    async with Runtime() as runtime:
        result = await runtime.run(agent, "hi")
    (line,) = made
    assert line.attributes["agentrt.run.id"] == result.run_id
    assert line.attributes["gen_ai.agent.name"] == "agent"
    assert (line.level, line.logger, line.trace_id) == ("warning", "agentrt.run", TRACE[0])


# --- nested and concurrent -------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["logging", "loguru"])
def test_a_value_that_logs_neither_blocks_nor_recurs(opened: Open, path: Path, by: str) -> None:
    logs = opened(to(path))
    value = Shown(logging.getLogger("inner").warning)
    if by == "logging":
        logging.getLogger("lib").warning("outer", extra={"value": value})
    else:
        loguru_logger.bind(value=value).warning("outer")
    assert [line["message"] for line in written(logs, path)] == ["outer", "shown"]


def test_a_redaction_that_logs_ends(opened: Open, screen: Screen, path: Path) -> None:
    def redact(text: str) -> str:
        logging.getLogger("redaction").warning("at work")
        return text

    logs = opened(LogSection(outputs=["stderr", str(path)]), redact=redact)
    logging.getLogger("lib").warning("x")
    assert logs.flush(10)
    assert 1 <= screen.text.count("at work") < 100


def test_what_the_thread_of_the_logs_logs_is_shown_but_not_written_by_it(
    opened: Open, screen: Screen, path: Path
) -> None:
    def redact(text: str) -> str:
        if text == "x":
            logging.getLogger("redaction").warning("at work")
        return text

    logs = opened(LogSection(outputs=[str(path), LogOutput(to="stderr", level="warning")]), redact=redact)
    logging.getLogger("lib").info("x")
    assert logs.flush(10)
    assert [line["message"] for line in written(logs, path)] == ["x"]
    assert screen.lines == ["WARNING redaction: at work"]


def test_threads_do_not_mix_their_lines(opened: Open, path: Path) -> None:
    logs = opened(to(path))

    def work(name: str) -> None:
        for number in range(200):
            if number % 2:
                loguru_logger.bind(n=number).info(name)
            else:
                logging.getLogger(name).info(name, extra={"n": number})

    threads = [threading.Thread(target=work, args=(f"t{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = written(logs, path)
    for name in (f"t{n}" for n in range(8)):
        assert [line["context"]["n"] for line in lines if line["message"] == name] == list(range(200))


# --- files -----------------------------------------------------------------------------------------------


def test_a_full_disk_is_told_once_and_its_lines_counted(opened: Open, screen: Screen) -> None:
    logs = opened(LogSection(outputs=[LogOutput(to="/dev/full")]))
    for _ in range(3):
        logging.getLogger("lib").warning("x")
        assert logs.flush(10)
    assert logs.lost == {"/dev/full": 3}
    (told,) = screen.lines
    assert told.startswith("WARNING agentrt.log: cannot write the log /dev/full: No space left on device; ")
    logs.close()
    assert screen.lines[1].startswith("WARNING agentrt.log: 3 log lines were lost")


def test_a_folder_that_is_none_is_told_and_the_program_goes_on(
    opened: Open, screen: Screen, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    logs = opened(LogSection(outputs=["stderr", str(tmp_path / "file" / "a.log")]))
    logging.getLogger("lib").warning("x")
    assert logs.flush(10)
    assert len(screen.lines) == 2
    assert (
        screen.lines[0].endswith("Not a directory; its lines are lost until that works")
        or "File exists" in (screen.lines[0])
    )
    assert screen.lines[1] == "WARNING lib: x"


def test_what_a_slow_disk_cannot_take_is_dropped_counted_and_told(
    opened: Open, path: Path, screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = opened(to(path))
    release = threading.Event()
    assert logs._thread is not None
    logs._thread._limit = 100
    file = logs._files[0][0]
    write = file.write

    def slow(lines: Any) -> None:
        release.wait(50)
        write(lines)

    monkeypatch.setattr(file, "write", slow)
    logging.getLogger("lib").info("first")
    began = time.perf_counter()
    for number in range(1000):
        logging.getLogger("lib").info("%d", number)
    assert time.perf_counter() - began < 20  # nobody waited for the disk
    assert not logs.flush(0.01)
    dropped = logs.dropped
    assert dropped >= 1000 - 100 - 1
    release.set()
    logging.getLogger("lib").info("after")
    lines = [line["message"] for line in written(logs, path)]
    told = [line for line in lines if line.endswith("they came faster than they could be written")]
    assert sum(int(line.split()[0]) for line in told) == logs.dropped
    assert len(lines) - len(told) + logs.dropped == 1002  # "first" and "after" included
    logs.close()
    assert screen.text.startswith(f"WARNING agentrt.log: {logs.dropped} log lines were lost")


def test_closing_does_not_wait_for_a_stuck_disk(
    opened: Open, path: Path, screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = opened(to(path))
    release = threading.Event()
    monkeypatch.setattr(logs._files[0][0], "write", lambda _: release.wait(50))
    for _ in range(5):
        logging.getLogger("lib").info("x")
    began = time.monotonic()
    logs.close(0.2)
    assert time.monotonic() - began < 20
    assert "log lines were lost" in screen.text
    release.set()


def test_a_forked_child_writes_its_own_lines_and_none_of_its_parent_s(opened: Open, path: Path) -> None:
    logs = opened(to(path))
    logging.getLogger("lib").info("parent")
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with logs._lock:  # as a thread that is writing at the moment of the fork
            held.set()
            release.wait(50)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of 3.12: there are threads, that is the point
        pid = os.fork()
    if pid == 0:
        signal.alarm(30)  # a child that waits for that thread would wait for ever
        try:
            logging.getLogger("lib").info("child")
            logs.flush(20)
        finally:
            os._exit(0)
    release.set()
    thread.join()
    _, status = os.waitpid(pid, 0)
    assert status == 0
    assert sorted(line["message"] for line in written(logs, path)) == ["child", "parent"]
