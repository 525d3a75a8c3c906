"""docs/telemetry.md says what is so."""

from __future__ import annotations

import re
from pathlib import Path

from msgspec.structs import fields

from agentrt.config import Config
from agentrt.config.sections import TelemetrySection
from agentrt.telemetry import conventions
from agentrt.telemetry.meter import Instrument

DOCS = Path(__file__).parent.parent.parent / "docs"
PAGE = (DOCS / "telemetry.md").read_text()


def test_the_table_of_metrics_has_all_of_them() -> None:
    told = set(re.findall(r"^\| `([a-z_.]+)` \| (counter|gauge|histogram), (\S+) \|", PAGE, re.MULTILINE))
    assert told == {
        (each.name, each.kind, each.unit)
        for each in vars(conventions).values()
        if isinstance(each, Instrument)
    }


def test_the_table_of_settings_has_all_of_them() -> None:
    table = PAGE[PAGE.index("| `[telemetry]` |") : PAGE.index("Inside a trace of a caller's")]
    names = [
        name for cell in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)[1:] for name in cell.split(", ")
    ]
    assert {name.strip("`") for name in names} == {field.name for field in fields(TelemetrySection)}


def test_the_example_of_a_configuration_is_one(tmp_path: Path) -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "agentrt.toml").write_text(block)
    config = Config.load(tmp_path / "agentrt.toml", environ={})
    assert config.telemetry.service == "shop"
    assert [table.name for table in config.backends()] == ["otlp", "file"]
    assert [type(table.make()).__name__ for table in config.backends()] == ["Otlp", "File"]


def test_every_page_that_it_names_is_there() -> None:
    for page in ("telemetry.md", "writing-a-telemetry-backend.md"):
        for target in re.findall(r"\]\(([^)#]+)", (DOCS / page).read_text()):
            assert (DOCS / target).exists(), target
