"""What docs/litmus.md shows is what the explorer does."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.litmus.verdict_tables import cases

from shadow_mmu.litmus import run
from shadow_mmu.litmus.cli import litmus

TEXT = (Path(__file__).parents[2] / "docs" / "litmus.md").read_text()


def test_its_python_example_runs() -> None:
    example = re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert example
    done = subprocess.run([sys.executable, "-c", example[1]], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == re.findall(r"# -> (.*)$", example[1], re.MULTILINE)


def test_its_timeline_is_the_one_that_is_found() -> None:
    timeline = run("P1", "O_SPTE=RLX").timeline
    assert timeline is not None
    rows = [
        [cell.strip() for cell in row.strip("|").split("|")]
        for row in re.findall(r"^\| \d+ \|.*\|$", TEXT, re.MULTILINE)
    ]
    shown = [
        [str(one.number), *(one.text if cpu == one.cpu else "" for cpu in range(3)), one.note] for one in timeline.steps
    ]
    assert rows == shown


def test_its_commands_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = re.findall(r"^\$ shadow-mmu litmus (.*)$", TEXT, re.MULTILINE)
    assert len(commands) == 5
    monkeypatch.chdir(tmp_path)
    for command in commands:
        words = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', command)]
        assert CliRunner().invoke(litmus, words).exit_code in {0, 1}, command


def test_its_counts_are_those_of_the_tables() -> None:
    for table, text in (("genmc", "| 111 (333 verdicts) |"), ("textbook", "| 84 (252 verdicts) |")):
        stated = cases(table)
        settings = {(name, setting) for name, setting, _ in stated}
        assert f"| {len(settings)} ({len(stated)} verdicts) |" == text
        assert text in TEXT
