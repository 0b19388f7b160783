"""What ``check`` found, as text, as JSON, and as SARIF 2.1.0 for code-scanning services."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from graphopt.errors import CODES
from graphopt.model.findings import Finding

Found = Mapping[Path, Sequence[Finding]]
"""Model file → its findings, most severe first."""

SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def text_lines(found: Found) -> Iterator[str]:
    """One paragraph a finding, below the name of its file, and a line that sums up."""
    for path, findings in found.items():
        counts = Counter(finding.severity for finding in findings)
        numbers = ", ".join(
            f"{counts[s]} {s}{'s' * (counts[s] != 1)}" for s in ("error", "warning", "note") if counts[s]
        )
        yield f"{path}: {numbers or 'nothing found'}"
        for finding in findings:
            yield f"  {finding.severity}[{finding.code}]: {sentence(finding)}"
            if finding.hint:
                yield f"    hint: {finding.hint}"


def sentence(finding: Finding) -> str:
    """``what (where): why``."""
    where = f" ({finding.where})" if finding.where else ""
    why = f": {finding.why}" if finding.why else ""
    return f"{finding.what}{where}{why}"


def as_json(found: Found) -> str:
    """The document ``graphopt/check``, version 1.

    ``{"schema_id", "schema_version", "models": [{"path", "findings": [{"code", "title", "severity", "what", "where",
    "why", "hint"}]}]}``.
    """
    models = [
        {"path": str(path), "findings": [{**asdict(f), "title": CODES[f.code]} for f in findings]}
        for path, findings in found.items()
    ]
    return json.dumps({"schema_id": "graphopt/check", "schema_version": 1, "models": models}, indent=2)


def as_sarif(found: Found) -> str:
    """A SARIF 2.1.0 log with one run; its rules are the codes that occur."""
    codes = sorted({finding.code for findings in found.values() for finding in findings})
    driver = {
        "name": "graphopt",
        "version": version("graphopt"),
        "rules": [{"id": code, "shortDescription": {"text": CODES[code]}} for code in codes],
    }
    results = [_result(path, f, codes.index(f.code)) for path, findings in found.items() for f in findings]
    log = {"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}
    return json.dumps(log, indent=2)


def _result(path: Path, finding: Finding, rule: int) -> dict[str, Any]:
    uri = path.resolve().as_uri() if path.is_absolute() else path.as_posix()
    location: dict[str, Any] = {"physicalLocation": {"artifactLocation": {"uri": uri}}}
    if finding.where:
        location["logicalLocations"] = [{"fullyQualifiedName": finding.where}]
    said = sentence(finding) + (f". Hint: {finding.hint}" if finding.hint else "")
    return {
        "ruleId": finding.code,
        "ruleIndex": rule,
        "level": finding.severity,
        "message": {"text": said},
        "locations": [location],
    }
