"""A run that found something, kept as a file: version, plan, what was wrong, each vCPU's last operations."""

import hashlib
import json
from pathlib import Path
from typing import Any, Final

from shadow_mmu.errors import ConfigError
from shadow_mmu.stressing.plan import StressPlan
from shadow_mmu.stressing.report import StressReport

__all__ = ["VERSION", "load_plan", "save_report"]

VERSION: Final = 1
_FORMAT: Final = "shadow-mmu stress"


def save_report(report: StressReport, folder: Path) -> Path:
    """Write a report into a folder, which is made if need be; returns the file, named after what is in it.

    Raises
    ------
    ConfigError
        It cannot be written there.

    """
    found = {"format": _FORMAT, "version": VERSION, "seed": report.plan.seed, **report.as_dict()}
    text = json.dumps(found, indent=1) + "\n"
    path = folder / f"stress-{report.plan.seed}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
    return path


def load_plan(path: Path) -> StressPlan:
    """Read the plan of a file that :func:`save_report` wrote.

    Raises
    ------
    ConfigError
        The file cannot be read, is of another format or version, or its plan is malformed; the text says what was expected.

    """
    try:
        raw: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no JSON ({error}): expected a file that a stress run wrote") from error
    if not isinstance(raw, dict) or raw.get("format") != _FORMAT:
        raise ConfigError(f"{path} is no stress run: expected an object with format {_FORMAT!r}")
    if raw.get("version") != VERSION:
        raise ConfigError(f"{path} has version {raw.get('version')!r}: expected {VERSION}")
    plan = raw.get("plan")
    if not isinstance(plan, dict):
        raise ConfigError(f"{path} has plan {plan!r}: expected an object")
    try:
        return StressPlan.from_dict(plan)
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"{path}: {error}") from error
