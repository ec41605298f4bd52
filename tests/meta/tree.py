"""What the checks of the tree read: tracked files, and Rust sources without their tests and comments."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "rust" / "core" / "src"


def tracked(*patterns: str) -> list[Path]:
    """Return the files that git tracks, or would, under these patterns.

    Without git (a source archive) every file counts that is not in a folder of built things.
    """
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *(patterns or (".",))]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        return sorted(path for line in listed.stdout.splitlines() if (path := ROOT / line).is_file())
    built = {"target", "build", "dist", ".venv", "__pycache__"}
    globs = [pattern.removeprefix("*") for pattern in patterns] or [""]
    found = (path for path in ROOT.rglob("*") if path.is_file() and not built & set(path.relative_to(ROOT).parts))
    return sorted(path for path in found if any(path.name.endswith(glob) for glob in globs))


def core_sources() -> list[Path]:
    """Return the core's sources; its models, planted races and unit tests in files of their own are left out."""
    found = [
        path for path in CORE.rglob("*.rs") if not {"models", "planted"} & set(path.parts) and path.name != "tests.rs"
    ]
    assert found, f"no Rust sources under {CORE}"
    return sorted(found)


def lock_sources() -> list[Path]:
    """Return the sources of the raw locks, without their models and tests."""
    lock = ROOT / "rust/sync/src/lock"
    found = [path for path in lock.rglob("*.rs") if not {"models", "tests"} & {*path.parts, path.stem}]
    assert found, f"no Rust sources under {lock}"
    return sorted(found)


def production(text: str) -> list[str]:
    """Return the lines up to the unit tests at the end of a Rust file."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        # Not an item for tests in the middle of a file, which is indented.
        if (
            re.match(r"#\[cfg\((all\()?test\b", line)
            and number + 1 < len(lines)
            and re.match(r"mod .*{$", lines[number + 1])
        ):
            return lines[:number]
    return lines


def without_comments(lines: list[str]) -> str:
    """Return the lines as one text, line comments removed."""
    return "\n".join(re.sub(r"//.*", "", line) for line in lines)
