"""What security costs: cached secrets, encryption, files below a root, rate checks, the audit log, each beside what one
would use without it.

What was measured is then shown to do its work: otherwise there are no figures.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import _security
from _measure import command_line, head, minima, remarks, report, run, say, table, verdicts
from _security import Audit, Ciphers, Jail, RateChecks, Secrets

SIZES = (64, 4096)
GOALS = {
    "cached_secret_over_ttl_dict": 1.5,
    "encrypt_64_over_fernet": 1.25,
    "encrypt_4096_over_fernet": 1.0,
    "jail_open_x": 4.0,
    "rate_check_over_limits": 1.0,
    "audit_append_x": 15.0,
    "audit_verify_x": 5.0,
}
EXPLANATIONS = """
CPU time of the thread, best of many interleaved rounds; the audit log: of the whole process, until everything is on
the disk. "x": in units of what is named first in each table.
A cached secret: beside a coroutine that reads a dict, and one that looks at the time as well (no lock, no single
flight, nothing stale, nothing hidden). Encryption: AES-256-GCM alone with one key and a random nonce; Fernet, which
binds nothing; Tink's AES-256-GCM; ours derives a key for each message and commits to it, and like Fernet's its tokens
are base64. Files: open and close, two folders below the root; realpath + open is what a rename gets past. Rate checks:
`limits`, hit and statistics, which together tell what one check of ours tells. Audit: intent and outcome of an
operation, hashed, chained, signed and synced, beside the same JSON lines written and synced once; verification beside
reading and decoding the lines.
Then: all reads were one call to the provider, as are 500 at a time of a cold secret; every cipher gave back what it
took and refused what was changed; nothing outside of the root was opened; of 1,000 hits exactly 100 were allowed;
every record is in the log, which verifies until one is changed."""


def over(measured: Mapping[str, float], name: str, unit: str) -> float:
    return round(measured[name] / measured[unit], 3)


async def measure_secrets(*, quick: bool) -> dict[str, Any]:
    say("cached secrets")
    subject = Secrets()
    measured = await minima(subject.cases(), calls=100 if quick else 1000, rounds=3 if quick else 150)
    await subject.prove()
    return {
        "dict_ns": round(measured["dict"]),
        "ttl_dict_x": over(measured, "ttl_dict", "dict"),
        "cached_secret_x": over(measured, "cached_secret", "dict"),
        "cached_secret_over_ttl_dict": over(measured, "cached_secret", "ttl_dict"),
    }


async def measure_encryption(names: list[str], *, quick: bool) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for size in SIZES:
        say(f"encryption of {size} bytes")
        subject = Ciphers(["encryption", "aesgcm", "fernet", *names], size)
        measured = await minima(subject.cases(), calls=20 if quick else 300, rounds=3 if quick else 100)
        subject.prove()
        for way in ("encrypt", "decrypt"):
            ours = f"{way}_encryption"
            results[f"{way}_{size}_us"] = round(measured[ours] / 1000, 2)
            for name in subject.made:
                if name != "encryption":
                    results[f"{way}_{size}_over_{name}"] = over(measured, ours, f"{way}_{name}")
    return results


async def measure_jail(*, quick: bool) -> dict[str, Any]:
    say("files below a root")
    with _security.scratch() as folder:
        subject = Jail(Path(folder))
        try:
            cases = subject.cases()
            measured = await minima(cases, calls=20 if quick else 300, rounds=3 if quick else 100)
            subject.prove()
        finally:
            subject.close()
    return {"open_us": round(measured["open"] / 1000, 2)} | {
        f"{name}_x": over(measured, name, "open") for name in cases if name != "open"
    }


async def measure_rate_checks(*, quick: bool) -> dict[str, Any]:
    say("rate checks")
    subject = RateChecks()
    measured = await minima(subject.cases(), calls=100 if quick else 1000, rounds=3 if quick else 60)
    await subject.prove()
    return {
        "limits_us": round(measured["limits"] / 1000, 2),
        "rate_check_us": round(measured["rate_check"] / 1000, 2),
        "rate_check_over_limits": over(measured, "rate_check", "limits"),
        "rate_check_over_limits_hit": over(measured, "rate_check", "limits_hit"),
        "rate_check_refused_over_limits": over(measured, "rate_check_refused", "limits_refused"),
    }


async def measure_audit(*, quick: bool) -> dict[str, Any]:
    say("audit log")
    operations, rounds = (100, 2) if quick else (2000, 15)
    with _security.scratch() as folder:
        subject = Audit(Path(folder))
        await subject.open()
        cases = {"plain": subject.write_plainly, "append": subject.append}
        measured = await minima(cases, calls=operations, rounds=rounds, clock=time.process_time_ns)
        wall = min([await _security.seconds(lambda: subject.append(operations)) for _ in range(rounds)])
        lines = await subject.close()
        reading = {"read": _security.sync(subject.read_plainly), "verify": _security.sync(subject.verify)}
        read = await minima(reading, calls=1, rounds=rounds)
        subject.prove()
    return {
        "audit_append_us": round(measured["append"] / 2 / 1000, 2),
        "audit_append_x": over(measured, "append", "plain"),
        "audit_append_per_second": round(2 * operations / wall),
        "audit_verify_x": over(read, "verify", "read"),
        "audit_verify_per_second": round(lines / (read["verify"] / 1e9)),
    }


async def measure(*, quick: bool, ours: bool) -> dict[str, Any]:
    names, absent = _security.installed(not ours)
    results = head("security", quick=quick)
    results |= await measure_secrets(quick=quick)
    results |= await measure_encryption(names, quick=quick)
    results |= await measure_jail(quick=quick)
    results |= await measure_rate_checks(quick=quick)
    results |= await measure_audit(quick=quick)
    return results | {"absent": absent}


def readable(results: dict[str, Any]) -> list[str]:
    def rows(*names: str) -> list[list[object]]:
        return [[name, results.get(name)] for name in names if name in results]

    peers = [name.removeprefix("encrypt_64_over_") for name in results if name.startswith("encrypt_64_over_")]
    return [
        f"security, Python {results['python']}\n",
        *table(
            ["secrets, in reads of a dict", f"{results['dict_ns']} ns"], rows("ttl_dict_x", "cached_secret_x")
        ),
        "",
        *table(
            ["encryption", "µs", *(f"over {peer}" for peer in peers)],
            [
                [f"{way} {size} bytes", results[f"{way}_{size}_us"]]
                + [results[f"{way}_{size}_over_{peer}"] for peer in peers]
                for size in SIZES
                for way in ("encrypt", "decrypt")
            ],
        ),
        "",
        *table(
            ["files, in plain opens", f"{results['open_us']} µs"],
            rows("realpath_open_x", "jail_open_x", "jail_open_walk_x"),
        ),
        "",
        *table(
            ["rate checks", ""],
            rows(
                "rate_check_us",
                "rate_check_over_limits",
                "rate_check_over_limits_hit",
                "rate_check_refused_over_limits",
            ),
        ),
        "",
        *table(
            ["audit", ""],
            rows(
                "audit_append_us",
                "audit_append_x",
                "audit_append_per_second",
                "audit_verify_x",
                "audit_verify_per_second",
            ),
        ),
        "",
        *verdicts(results, GOALS),
        EXPLANATIONS,
        "",
        *remarks(results),
    ]


def main() -> None:
    options = command_line("security", __doc__ or "").parse_args()
    results = run(measure(quick=options.quick, ours=options.ours))
    report(results, as_json=options.json, lines=readable(results))


if __name__ == "__main__":
    main()
