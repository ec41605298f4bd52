"""What the documents promise exists: commands, targets, links, the example, docstrings of public names."""

import importlib
import inspect
import re
import subprocess
import sys
import textwrap

import pytest
from tests.meta.tree import ROOT, tracked

README = ROOT / "README.md"
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


def make_targets(makefile: str) -> set[str]:
    """Return the targets that stand at the start of a line."""
    return set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))


def commands(markdown: str, program: str) -> set[str]:
    """Return the first argument of each use of a program in the code of a Markdown text."""
    code = re.findall(r"```(?:console|sh|bash)?\n(.*?)```", markdown, re.DOTALL) + re.findall(r"`([^`\n]+)`", markdown)
    return {word for text in code for word in re.findall(rf"\b{program}\s+([a-z][a-z-]*)", text)}


def broken_links(markdown: str, exists: object) -> list[str]:
    """Return the relative links for which ``exists(link)`` is false."""
    assert callable(exists)
    return [link for link in LINK.findall(markdown) if "://" not in link and not exists(link)]


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "docs/testing.md", "docs/architecture.md"])
def test_every_make_target_that_a_document_names_exists(document: str) -> None:
    named = commands((ROOT / document).read_text(), "make")
    assert named <= make_targets((ROOT / "Makefile").read_text())


def test_the_readme_begins_with_the_two_commands() -> None:
    first = re.search(r"```console\n(.*?)```", README.read_text(), re.DOTALL)
    assert first
    assert re.findall(r"^\$ (make \w+)", first[1], re.MULTILINE)[:1] == ["make demo"]
    assert {"demo", "test"} <= commands(README.read_text(), "make")


def test_the_subcommands_that_the_readme_names_exist() -> None:
    cli = importlib.import_module("shadow_mmu.cli")
    named = commands(README.read_text(), "shadow-mmu")
    assert {"replay", "run"} <= named
    assert named <= set(cli.main.commands)


def test_make_help_lists_every_documented_target() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    documented = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert len(documented) > 8
    assert re.findall(r"^  make ([a-z-]+)", listed, re.MULTILINE) == documented


def test_relative_links_lead_somewhere() -> None:
    broken = []
    for path in tracked("*.md"):
        missing = broken_links(path.read_text(), lambda link, path=path: (path.parent / link).exists())
        broken += [f"{path.relative_to(ROOT)}: {link}" for link in missing]
    assert not broken


def test_the_python_example_of_the_readme_runs() -> None:
    example = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert example
    done = subprocess.run([sys.executable, "-c", example[1]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shown = re.findall(r"# -> (.*)$", example[1], re.MULTILINE)
    assert shown
    assert done.stdout.splitlines() == shown


def public_names() -> list[tuple[str, object]]:
    """Return the public names of the package, and the public members of its classes."""
    package = importlib.import_module("shadow_mmu")
    found: list[tuple[str, object]] = []
    for name in package.__all__:
        thing = getattr(package, name)
        if not (inspect.isclass(thing) or inspect.isroutine(thing) or inspect.ismodule(thing)):
            continue
        found.append((name, thing))
        if inspect.isclass(thing) and thing.__module__.startswith("shadow_mmu"):
            members = ((member, value) for member, value in vars(thing).items() if not member.startswith("_"))
            found += [
                (f"{name}.{member}", value)
                for member, value in members
                if inspect.isroutine(value) or isinstance(value, property)
            ]
    return found


def test_public_names_say_what_they_are() -> None:
    names = public_names()
    assert len(names) > 20
    assert [name for name, thing in names if not (inspect.getdoc(thing) or "").strip()] == []


def test_the_changelog_opens_with_what_is_not_released() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"


def test_a_command_that_does_not_exist_would_be_seen() -> None:
    text = textwrap.dedent("""\
        Run `make nonsense`.
        ```console
        $ make demo
        $ shadow-mmu frobnicate x
        ```
        """)
    assert commands(text, "make") == {"nonsense", "demo"}
    assert commands(text, "shadow-mmu") == {"frobnicate"}
    assert make_targets("demo: x ## y\n\t@make all\n.PHONY: demo\n") == {"demo"}


def test_a_broken_link_would_be_seen() -> None:
    text = "[a](docs/a.md) [b](https://example.org/b) [c](c.md#there)"
    assert broken_links(text, lambda link: link == "docs/a.md") == ["c.md"]
