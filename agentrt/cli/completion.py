"""`agentrt completion`, and what it completes: targets and settings.

The scripts are click's, but bash's is our own: bash takes `:` and `=` for the ends of words, and a target has one.
"""

from __future__ import annotations

import os
from typing import Any

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    add_completion_class,
    get_completion_class,
    split_arg_string,
)

from agentrt.cli.candidates import files_and_modules, names_in
from agentrt.cli.main import COMPLETION
from agentrt.cli.report import OK
from agentrt.cli.terminal import Terminal

__all__ = ["complete_setting", "complete_target", "completion"]

WHERE = {
    "bash": 'eval "$(agentrt completion bash)"           in ~/.bashrc',
    "zsh": 'eval "$(agentrt completion zsh)"            in ~/.zshrc',
    "fish": "agentrt completion fish | source            in ~/.config/fish/config.fish",
}


@click.command(
    short_help="Print the completion script of a shell.",
    epilog="\b\nTo complete in every new shell:\n  " + "\n  ".join(WHERE.values()) + "\n",
)
@click.argument("shell", type=click.Choice(list(WHERE)))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> int:
    """Print the script that makes SHELL complete commands, options, targets and settings."""
    terminal: Terminal = ctx.obj
    script = get_completion_class(shell)
    assert script is not None
    terminal.line(script(ctx.find_root().command, {}, "agentrt", COMPLETION).source())
    return OK


class Bash(BashComplete):
    """Completes with the whole line, so that a word with a colon in it stays one."""

    source_template = """\
%(complete_func)s() {
    local IFS=$'\\n' type value word="${COMP_LINE:0:COMP_POINT}" cut
    word="${word##*[[:space:]]}"
    cut="${word%%"${word##*[:=]}"}"
    COMPREPLY=()
    while IFS=',' read -r type value; do
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain)
                COMPREPLY+=("${value#"$cut"}")
                [[ $value == *[:/=] ]] && compopt -o nospace
                ;;
        esac
    done < <(COMP_LINE="${COMP_LINE:0:COMP_POINT}" %(complete_var)s=bash_complete "$1" 2>/dev/null)
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""

    def source(self) -> str:
        return self.source_template % self.source_vars()  # without asking bash for its version first

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ.get("COMP_LINE", "")
        words = split_arg_string(line)
        incomplete = words.pop() if words and line and not line[-1].isspace() else ""
        return words[1:], incomplete

    def format_completion(self, item: CompletionItem) -> str:
        return f"{item.type},{item.value}"


add_completion_class(Bash)


def complete_target(incomplete: str, *, app_dir: str = ".") -> list[CompletionItem]:
    """Files, folders and modules up to the colon; after it the agents in the file, which is read, not imported."""
    place, colon, attribute = incomplete.partition(":")
    if colon:
        return [
            CompletionItem(f"{place}:{name}")
            for name in names_in(place, app_dir)
            if name.startswith(attribute)
        ]
    return [CompletionItem(found) for found in files_and_modules(app_dir, place) if found.startswith(place)]


def complete_setting(incomplete: str) -> list[CompletionItem]:
    """The settings that there are, as far as their names are known without loading plugins."""
    return [CompletionItem(f"{name}=") for name in _settings() if name.startswith(incomplete)]


def _settings() -> list[str]:
    from agentrt.config.sections import KINDS, AgentSection, LogSection, RunSection
    from agentrt.config.state_sections import EncryptionSection, StateSection
    from agentrt.decode import options_of
    from agentrt.limits import Limits
    from agentrt.middleware.defaults import STAGES

    sections: dict[str, Any] = {
        "run": RunSection,
        "run.limits": Limits,
        "agent": AgentSection,
        "log": LogSection,
        "state": StateSection,
        "encryption": EncryptionSection,
        **{f"pipeline.{name}": stage for name, stage in STAGES.items()},
    }
    names = [f"{section}.{option}" for section, cls in sections.items() for option in options_of(cls)]
    return [*names, *(f"pipeline.{kind}.deadline" for kind in KINDS), "pipeline.use"]
