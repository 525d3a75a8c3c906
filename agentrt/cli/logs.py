"""Log records and Python's warnings, as [log] says; by default short lines on stderr.

There a record is `LEVEL logger: message`, unlike what the command itself says (`error: ...`): a failure that was logged
and got over must not look like the command's own. An error of agentrt's that comes again, with every turn of a
conversation for example, is said once.
"""

from __future__ import annotations

import atexit
import logging
import warnings
from typing import TextIO

from agentrt.cli.terminal import Terminal
from agentrt.config.sections import LogSection
from agentrt.telemetry.logs import Logs, current

__all__ = ["adopt_loguru", "show_logs", "show_warnings"]

CLOSING_SECONDS = 2.0
"""What is not written to files this long after the command has ended is lost, and told."""


def show_logs(section: LogSection, terminal: Terminal, *, service: str = "agentrt") -> Logs:
    """Take the logs of this process over until it ends; called again, with another configuration."""
    logs = Logs(section, service=service, console=terminal)
    logs.open()
    atexit.register(logs.close, CLOSING_SECONDS)
    return logs


def adopt_loguru() -> None:
    """If the agent's module has loaded loguru, have its lines written as all others. For after the import."""
    logs = current()
    if logs is not None:
        logs.adopt_loguru()


def show_warnings(terminal: Terminal, logs: Logs | None = None) -> None:
    """Show warnings of agentrt in one line, with the place only if that is the user's; all others as Python does.

    Where `logs` have more than lines for people on stderr, they get each warning, as a record of "py.warnings".
    """
    as_python_does = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if file is None and logs is not None and logs.is_open and not logs.is_plain:
            said = f"{category.__name__}: {message}"
            logging.getLogger("py.warnings").warning("%s", said, extra={"file": filename, "line": lineno})
        elif file is None and category.__module__.startswith("agentrt"):
            terminal.warning(str(message))
        else:
            as_python_does(message, category, filename, lineno, file, line)

    warnings.showwarning = show
