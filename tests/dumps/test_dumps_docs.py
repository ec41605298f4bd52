"""What the documents print of `maps` and `walk` is what the commands print, and the Python example runs."""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.dumps.conftest import unpacked
from tests.meta.tree import ROOT

from shadow_mmu.cli import main

SHELL = re.compile(r"```console\n(.*?)```", re.DOTALL)


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand where the 4-level dump is, under the name that the documents use."""
    (tmp_path / "guest.elf").write_bytes(unpacked("qemu_kpti_la48.ptonly.elf"))
    monkeypatch.chdir(tmp_path)


def sessions(text: str) -> list[tuple[str, list[str]]]:
    """Return the commands on guest.elf in the console blocks of a document, each with the lines below it."""
    found: list[tuple[str, list[str]]] = []
    for block in SHELL.findall(text):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *lines = part.splitlines()
            if command.startswith("shadow-mmu") and "guest.elf" in command:
                found.append((command, lines))
    return found


def same(printed: list[str], shown: list[str]) -> bool:
    """Whether a document shows what was printed; `...` stands for the rest, and of the frame it may show less."""
    if shown[-1:] == ["..."]:
        printed, shown = printed[: len(shown) - 1], shown[:-1]
    return [one.rstrip() for one in printed] == shown


@pytest.mark.usefixtures("guest")
@pytest.mark.parametrize("document", ["README.md", "docs/dumps.md"])
def test_a_document_shows_what_the_commands_print(document: str) -> None:
    found = sessions((ROOT / document).read_text())
    assert found
    for command, shown in found:
        done = CliRunner().invoke(main, shlex.split(command)[1:])
        assert done.exit_code == 0, done.output
        assert same(done.stdout.splitlines(), shown), command


def test_a_document_that_shows_something_else_would_be_seen() -> None:
    (one,) = sessions("```console\n$ shadow-mmu walk guest.elf 0\na\nb\n$ ls\nc\n```")
    assert one == ("shadow-mmu walk guest.elf 0", ["a", "b"])
    assert same(["a", "b"], ["a", "b"])
    assert same(["a", "b", "c"], ["a", "..."])
    assert not same(["a", "b"], ["a"])
    assert not same(["a", "x"], ["a", "b"])
    assert not same(["x", "b"], ["a", "..."])


@pytest.mark.usefixtures("guest")
def test_the_python_example_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/dumps.md").read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(example, names)  # noqa: S102  the project's own text
    assert "0x29dc730, in a page of 4 KiB, rw- u" in repr(names["walk"])
