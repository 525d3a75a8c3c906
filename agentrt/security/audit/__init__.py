"""The audit log: a chain of records with signed checkpoints. docs/audit.md has the format.

async with AuditLog("audit.jsonl", signing_key="audit.key") as log:
    with acting(actor="billing"):
        operation = log.intent("invoice.send", "customer:42")
    ...
    operation.ended()
"""

from __future__ import annotations

from agentrt.security.audit.acting import acting
from agentrt.security.audit.errors import AuditUnavailable
from agentrt.security.audit.log import AuditLog
from agentrt.security.audit.operation import Operation
from agentrt.security.audit.sinks import AuditSink, FileAnchor

__all__ = ["AuditLog", "AuditSink", "AuditUnavailable", "FileAnchor", "Operation", "acting"]
