"""The acceptance of secrets and security: each provider against its server, each boundary executed, each fault.

    ./dev accept security                 # every line
    ./dev accept security --list          # their names
    ./dev accept security --only Vault    # the lines whose name contains "Vault"

Prints PASS or FAIL for each line and exits 1 if one failed. It works in a fresh clone: nothing of this working tree is
used but its last commit. A line that names tests fails if one of the names has no test, or one that was skipped.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from _acceptance import Acceptance, Place, expect, one_error

acceptance = Acceptance("security", __doc__)
line, proved = acceptance.line, acceptance.proved


def secrets(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/secrets/{name}" for name in names)


def security(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/security/{name}" for name in names)


def plugins(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/plugins/{name}" for name in names)


# --- as a user sees it -----------------------------------------------------------------------------------

AGENTS = """
from agentrt import Agent, tool
from agentrt.file_tools import file_tools
from agentrt.security.files import FileAccess


@tool
async def pay(amount: int) -> str:
    return "paid"


class Clerk:
    async def run(self, message, ctx):
        key = await ctx.secret("secret://file/api-key")
        return await ctx.tool(pay, amount=len(key))
"""


def folder(place: Place, configuration: str) -> Path:
    """A user's folder with agents, a mounted secret and a configuration."""
    made = place.home / "project"
    (made / "mounted").mkdir(parents=True, exist_ok=True)
    (made / "mounted" / "api-key").write_text("a-value-of-ours-0123456789\n")
    (made / "mounted" / "api-key").chmod(0o600)
    (made / "agents.py").write_text(AGENTS)
    (made / "agentrt.toml").write_text(configuration)
    return made


def configured(place: Place, more: str = "") -> tuple[Path, tuple[str, ...]]:
    made = folder(place, "")
    text = f'[secrets.providers.file]\npath = "{made}/mounted"\n{more}'
    (made / "agentrt.toml").write_text(text)
    return made, ("--config", str(made / "agentrt.toml"))


@line("agentrt secrets get, list, check: references are followed, values masked, a missing one named")
def commands(place: Place) -> str:
    made, config = configured(place, '[models.openai]\napi_key = "secret://file/gone"\n')
    got = place.agentrt("secrets", "get", *config, "secret://file/api-key")
    expect(got.returncode == 0 and "a-value-of-ours" not in got.stdout + got.stderr, got)
    asked = place.agentrt("secrets", "get", *config, "--reveal", "secret://file/api-key")
    expect(asked.returncode != 0 and "a-value-of-ours" not in asked.stdout + asked.stderr, asked)
    listed = place.agentrt("secrets", "list", *config, "--provider", "file")
    expect(listed.returncode == 0 and "api-key" in listed.stdout, listed)
    checked = place.agentrt("secrets", "check", *config)
    expect(checked.returncode == 1 and "secret://file/gone" in checked.stdout, checked)
    (made / "mounted" / "gone").write_text("there-now")
    (made / "mounted" / "gone").chmod(0o600)
    again = place.agentrt("secrets", "check", *config)
    expect(again.returncode == 0, again)
    return " ".join(again.stdout.split())[:200]


@line("a run is audited: agentrt audit verify finds it good, and names the record that was edited")
def audited(place: Place) -> str:
    made, config = configured(place, f'[audit]\npath = "{place.home}/audit.jsonl"\nstrict = true\n')
    log = place.home / "audit.jsonl"
    log.unlink(missing_ok=True)
    done = place.agentrt("run", *config, f"{made}/agents.py:Clerk", "hi")
    expect(done.returncode == 0 and done.stdout == "paid\n", done)
    good = place.agentrt("audit", "verify", str(log))
    expect(good.returncode == 0, good)
    actions = [json.loads(text).get("action") for text in log.read_text().splitlines()]
    for action in ("config.loaded", "run", "secret.read", "tool.call"):
        expect(action in actions, f"no {action}: {actions}")
    expect("a-value-of-ours" not in log.read_text(), "the secret is in the log")
    shown = place.agentrt("audit", "show", str(log))
    expect(shown.returncode == 0 and "pay" in shown.stdout, shown)
    log.write_text(log.read_text().replace("tool:pay", "tool:day", 1))
    bad = place.agentrt("audit", "verify", str(log))
    expect(bad.returncode == 1, bad)
    return next(text for text in bad.stdout.splitlines() if text.strip())


@line(
    "agentrt secrets scan finds a planted key in what is staged, masks it, and finds none in this repository"
)
def scanned(place: Place) -> str:
    # The scanner is an extra that the environment of the tests has.
    place.run("./dev", "test", "--collect-only", "-q", "tests/secrets/test_secrets_env.py")
    command = str(next((place.clone / ".dev").glob("test-*/bin/agentrt")))
    clean = place.run(command, "secrets", "scan", str(place.clone))
    expect(clean.returncode == 0, clean)
    planted = place.home / "planted"
    planted.mkdir(exist_ok=True)
    key = "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"
    (planted / "settings.py").write_text(f'TOKEN = "{key}"\n')
    found = place.run(command, "secrets", "scan", str(planted))
    expect(found.returncode == 1 and "settings.py:1" in found.stdout, found)
    expect(key not in found.stdout + found.stderr, "the key is shown")
    return found.stdout.splitlines()[0]


@line("typical mistakes get one message: no key, a value in the file, an unknown provider, a missing extra")
def mistakes(place: Place) -> str:
    made, config = configured(place)
    agent = f"{made}/agents.py:Clerk"
    one_error(
        place.agentrt("run", "--set", "secrets.providers.file.pth=x", *config, agent, "hi"),
        code=2,
        says=r"pth.*did you mean 'path'",
    )
    (made / "mounted" / "api-key").unlink()
    one_error(place.agentrt("run", *config, agent, "hi"), code=1, says=r"secret://file/api-key")
    (made / "agentrt.toml").write_text('[models.openai]\napi_key = "sk-0123456789"\n')
    one_error(place.agentrt("run", *config, agent, "hi"), code=2, says=r"secrets never stand in a file")
    (made / "agentrt.toml").write_text('[secrets]\nprovider = "valt"\n')
    one_error(place.agentrt("secrets", "get", *config, "key"), code=2, says=r"'valt'.*vault")
    return "four mistakes"


# --- secrets ---------------------------------------------------------------------------------------------

proved(
    "the contract: references, typed errors, SecretValue, and the conformance suite, which finds what is wrong",
    *secrets("test_secrets_protocol.py", "test_secrets_conformance.py", "test_secrets_suite.py"),
)
proved(
    "env, dotenv and file, with rotation and the links of Kubernetes",
    *secrets("test_secrets_env.py", "test_secrets_dotenv.py", "test_secrets_file.py"),
)
proved(
    "AWS Secrets Manager: moto, and a server that fails as AWS documents",
    *plugins("test_plugin_aws_secrets.py"),
)
proved(
    "GCP Secret Manager: Google's client against a gRPC server, checksums",
    *plugins("test_plugin_gcp_secrets.py"),
)
proved(
    "Azure Key Vault: Azure's client against HTTPS with the challenge",
    *plugins("test_plugin_azure_secrets.py"),
)
proved(
    "Vault: KV v1 and v2, versions, deletion, policies on a real OpenBao",
    *plugins("test_plugin_vault_kv.py", "test_plugin_vault_conformance.py", "test_plugin_vault_places.py"),
)
proved(
    "Vault: AppRole, wrapped secret_id, JWT, Kubernetes, token, renewal, expiry",
    *plugins("test_plugin_vault_logins.py", "test_plugin_vault_tokens.py"),
)
proved(
    "Vault: sealed, down, throttled, wrong answers",
    *plugins("test_plugin_vault_failures.py", "test_plugin_vault_tls.py"),
)
proved(
    "Vault: database credentials on a real Postgres, renewed, and revoked when the runtime closes",
    *plugins("test_plugin_vault_leases.py", "test_plugin_vault_runs.py"),
)
proved(
    "the cache: single flight, soft time with jitter, stale while the provider is down, negative time, callbacks",
    *secrets("test_secrets_cache.py", "test_secrets_model.py", "test_secrets_manager.py"),
)
proved(
    "500 concurrent cold reads make one provider call, counted at each server",
    *secrets("test_secrets_manager.py::test_five_hundred_readers_make_one_call"),
    *plugins(
        "test_plugin_aws_secrets.py::test_five_hundred_readers_of_what_the_configuration_leads_to_are_one_request",
        "test_plugin_gcp_secrets.py::test_five_hundred_readers_of_what_the_configuration_leads_to_are_one_request",
        "test_plugin_azure_secrets.py::test_five_hundred_readers_of_what_the_configuration_leads_to_are_one_request",
        "test_plugin_vault_runs.py::test_five_hundred_readers_cost_one_login_and_one_read",
    ),
)
proved(
    "an outage serves stale within the rules; Denied never does",
    *secrets(
        "test_secrets_cache.py::test_an_outage_is_bridged_for_a_day_and_not_longer",
        "test_secrets_cache.py::test_what_is_no_outage_ends_the_use_of_a_value_at_once",
        "test_secrets_cache.py::test_denied_in_the_middle_of_an_outage_ends_it_too",
        "test_secrets_cache.py::test_a_value_that_ends_by_itself_is_never_given_after_its_end",
    ),
    *plugins("test_plugin_vault_runs.py::test_an_outage_serves_what_is_kept_and_a_denial_does_not"),
)
proved("leases: renewed, replaced, given back", *secrets("test_secrets_leases.py"))
proved(
    "a Secret gives itself away to no output; reveal() is audited",
    *secrets("test_secrets_protocol.py"),
    *security("test_audit_contents.py::test_reading_and_revealing_a_secret"),
)
proved(
    "model clients, telemetry backends and providers follow a rotation: a 401 refetches once",
    "tests/models/test_credential.py",
    "tests/telemetry/test_otlp.py::test_a_refused_key_is_looked_up_anew_and_the_message_sent_once_more",
    *plugins(
        "test_plugin_azure_secrets.py::test_an_application_whose_password_was_rotated_logs_in_with_the_new_one",
        "test_plugin_redis_failures.py::test_a_password_that_was_changed_is_followed",
    ),
)
proved(
    "a provider of at most 30 lines from the page is installed and run",
    *secrets("test_secrets_pages.py"),
    *plugins("test_secrets_pages.py"),
)
proved("the commands", "tests/cli/test_secrets_command.py", "tests/cli/test_secrets_scan.py")

# --- encryption ------------------------------------------------------------------------------------------

proved(
    "tokens: documented format with vectors, any change, another context, an unknown key: one error",
    *security("test_encryption.py", "test_keys.py"),
    "tests/runtime/test_encryption.py",
)
proved(
    "stored conversations are encrypted if wanted, and the file has no plaintext",
    "tests/state",
    "tests/cli/test_stored_sessions.py",
)

# --- boundaries ------------------------------------------------------------------------------------------

proved(
    "sanitize_input, shell_quote, argv, sql_identifier: unchanged or refused",
    *security("test_sanitize.py", "test_shell.py", "test_sql_identifier.py"),
)
proved(
    "payloads executed on SQLite, Postgres, argv, sh and paths: nothing but the intended effect",
    *security("test_boundaries_executed.py"),
)
proved(
    "sql_guard: hostile statements refused, harmless ones run, and what passes only reads",
    *security("test_sql_guard.py", "test_sql_guard_executed.py"),
)
proved(
    "FileAccess: open files below a root and nothing else, by openat2 and by the walk",
    *security(
        "test_files.py",
        "test_files_ways.py",
        "test_files_async.py",
        "test_files_writing.py",
        "test_files_payloads.py",
    ),
)
proved("a rename race leaks nothing, where a check before the use does", *security("test_files_race.py"))
proved("read_file, write_file, list_files for agents", *security("test_file_tools.py"))
proved(
    "the sketch's defects: paths, shell, SQL, O'Brien, double fixed window, a call for each reader",
    *security(
        "test_boundaries_executed.py::test_a_path_is_not_made_into_one_that_escapes",
        "test_boundaries_executed.py::test_newline_and_redirection_run_nothing",
        "test_boundaries_executed.py::test_a_star_is_a_star",
        "test_boundaries_executed.py::test_a_value_is_not_an_option",
        "test_boundaries_executed.py::test_or_1_is_1_finds_nobody",
        "test_boundaries_executed.py::test_o_brien_keeps_the_apostrophe",
        "test_boundaries_executed.py::test_harmless_text_is_not_mangled",
        "test_rate_limits.py::test_a_fixed_window_would_let_twice_as_much_through_at_its_edge",
        "test_encryption.py::test_another_context_is_refused",
    ),
    *secrets(
        "test_secrets_manager.py::test_five_hundred_readers_make_one_call",
        "test_secrets_cache.py::test_a_secret_that_is_not_there_is_asked_for_once_in_half_a_minute",
    ),
)

# --- rate limits -----------------------------------------------------------------------------------------

proved(
    "1,000 concurrent hits at limit 100 allow exactly 100: one process, and four over one Valkey",
    *security("test_rate_limits.py::test_of_a_thousand_concurrent_hits_at_limit_100_exactly_100_are_allowed"),
    *plugins(
        "test_plugin_redis.py::test_of_a_thousand_concurrent_hits_at_limit_100_exactly_100_are_allowed",
        "test_plugin_redis.py::test_of_a_thousand_hits_from_four_processes_exactly_100_are_allowed",
    ),
)
proved(
    "the moving window in memory, against a model and against the library limits",
    *security("test_rate_limits.py", "test_rate_limits_model.py", "test_rate_limits_page.py"),
)
proved("on Valkey: the server's clock, one script, a pool that queues", *plugins("test_plugin_redis.py"))
proved("the server fails: open, closed, local, told once", *plugins("test_plugin_redis_failures.py"))
proved("the stage RateLimit", "tests/pipeline/test_rate_limit.py", "tests/runtime/test_rate_limits.py")

# --- audit -----------------------------------------------------------------------------------------------

proved(
    "every operation, intent before and outcome after, hashed or redacted, in groups",
    *security("test_audit_log.py", "test_audit_runtime.py", "test_audit_contents.py"),
)
proved(
    "edits, deletions, reordering, truncation, a forged checkpoint, a rebuilt chain: each is detected and named",
    *security("test_audit_verify.py", "test_audit_sinks.py"),
)
proved(
    "kill -9 leaves a log that verifies up to the last group",
    *security("test_audit_crash.py::test_a_process_that_is_killed_20_times_leaves_a_good_log"),
)
proved(
    "a full disk, a read-only folder, a second writer, forks, torn lines",
    *security(
        "test_audit_failures.py", "test_audit_disk.py", "test_audit_lock.py", "test_audit_processes.py"
    ),
    *security("test_audit_place.py"),
)
proved("agentrt audit verify, show, tail", "tests/cli/test_audit_command.py")

# --- done when -------------------------------------------------------------------------------------------

proved(
    "a planted secret is in no log, span, event, audit record, error or traceback of a failing run",
    *security(
        "test_planted_secret.py",
        "test_audit_contents.py::test_no_secret_is_in_the_log_of_a_run_in_which_everything_fails",
    ),
    "tests/telemetry/test_no_secret_leaves.py",
)

RATIOS = (
    "cached_secret_over_ttl_dict",
    "encrypt_64_over_fernet",
    "encrypt_64_over_tink",
    "jail_open_x",
    "rate_check_over_limits",
    "audit_append_x",
    "audit_verify_x",
)


@line("the benchmark: cached reads, encryption, jail opens, rate checks, audit append and verify, as ratios")
def benchmark(place: Place) -> str:
    done = place.run("./dev", "bench", "security", "--json", timeout=900)
    expect(done.returncode == 0, done.stderr)
    figures: dict[str, Any] = json.loads(done.stdout)
    expect(not figures.get("absent"), figures.get("absent"))
    text = (place.clone / "docs" / "performance.md").read_text()
    for name in RATIOS:
        expect(isinstance(figures.get(name), int | float), f"no {name}: {figures}")
    expect("jail_open_x" in text, "docs/performance.md has no jail_open_x")
    return ", ".join(f"{name} {figures[name]}" for name in RATIOS)


@line("docs/security.md has the threat model, SECURITY.md how to report")
def pages(place: Place) -> str:
    page = (place.clone / "docs" / "security.md").read_text()
    for heading in (
        "## What there is to protect",
        "## Whom we trust",
        "## What is promised",
        "## What is not promised",
    ):
        expect(heading in page, f"docs/security.md has no {heading!r}")
    for name in re.findall(r"\]\(((?:\.\./)?[\w.-]+\.md)\)", page):
        expect(
            (place.clone / "docs" / name).is_file(), f"docs/security.md leads to {name}, which is not there"
        )
    expect("Report a vulnerability" in (place.clone / "SECURITY.md").read_text(), "SECURITY.md")
    return "both, and every page that the first one names"


if __name__ == "__main__":
    sys.exit(acceptance.main())
