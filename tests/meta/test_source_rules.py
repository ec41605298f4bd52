"""Rules of the tree that no linter knows: size of files, no unsafe code in the core, no paths of a machine."""

import re

import pytest
from tests.meta.tree import ROOT, core_sources, tracked

LINES_CAP = 450
UNSAFE_CAP = 300
# Written in two parts, so that this file does not hold what it forbids.
MACHINE_PATH = re.compile(r"(^|[^A-Za-z0-9_./-])/" + r"(work|farm|root|home|Users)/[A-Za-z.]")


def too_long(text: str) -> int:
    """Return the number of lines above the cap."""
    return max(0, len(text.splitlines()) - LINES_CAP)


def unsafe_uses(text: str) -> list[str]:
    """Return the lines of Rust code that use or allow unsafe code."""
    code = (re.sub(r"//.*", "", line) for line in text.splitlines())
    return [line for line in code if re.search(r"\bunsafe\b(?!_code)|allow\(unsafe_code\)", line)]


def test_one_concept_a_file_no_source_is_longer_than_the_cap() -> None:
    sources = tracked("*.rs", "*.py", "*.pyi")
    assert len(sources) > 50
    long = {str(path.relative_to(ROOT)): over for path in sources if (over := too_long(path.read_text()))}
    assert not long, f"lines above {LINES_CAP}: split these by concept"


def test_the_core_forbids_unsafe_code_and_has_none() -> None:
    assert "#![forbid(unsafe_code)]" in (ROOT / "rust/core/src/lib.rs").read_text()
    assert "#![deny(unsafe_code)]" in (ROOT / "rust/python/src/lib.rs").read_text()
    sources = core_sources() + sorted((ROOT / "rust/python/src").rglob("*.rs"))
    found = {str(path): uses for path in sources if (uses := unsafe_uses(path.read_text()))}
    assert not found


def unexplained(text: str) -> int:
    """Return how many more unsafe blocks and implementations there are than comments that say why they are sound."""
    proved = [line for line in unsafe_uses(text) if re.search(r"\bunsafe (\{|impl\b)", line)]
    return len(proved) - len(re.findall(r"// SAFETY: \S", text))


def test_unsafe_code_is_in_one_crate_small_and_explained() -> None:
    """The models use loom's cells, the planted races are wrong on purpose; neither is shipped."""
    shipped = [
        path for path in tracked("rust/**/*.rs") if not {"models", "planted", "tests"} & {*path.parts, path.stem}
    ]
    found = {path: text for path in shipped if unsafe_uses(text := path.read_text())}
    assert found
    assert {path.relative_to(ROOT).parts[:2] for path in found} == {("rust", "sys")}
    assert sum(len(text.splitlines()) for text in found.values()) <= UNSAFE_CAP
    assert not [path for path, text in found.items() if unexplained(text) > 0]
    assert "clippy::undocumented_unsafe_blocks" in (ROOT / "rust/sys/src/lib.rs").read_text()


def test_unsafe_code_without_a_reason_would_be_seen() -> None:
    assert unexplained("// SAFETY: it is\nunsafe { x() }\nunsafe { y() }") == 1
    assert unexplained("// SAFETY:\nunsafe { x() }") == 1
    assert unexplained("// SAFETY: it is\nunsafe { x() }") == 0


def test_the_bindings_stay_marshalling() -> None:
    """A binding that decides something grows; the cap makes that visible (architecture, bindings).

    Of these about a fifth copies reports into dictionaries, a tenth is the stress's keywords and report, another takes and gives arrays
    of translations.
    """
    lines = {path.name: len(path.read_text().splitlines()) for path in (ROOT / "rust/python/src").rglob("*.rs")}
    assert sum(lines.values()) <= 1700, lines


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    found = []
    for path in tracked():
        if path.suffix in {".npz", ".xz"}:
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if MACHINE_PATH.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not found


@pytest.mark.parametrize(
    "line", ["unsafe { x() }", "unsafe fn f() {}", "#![allow(unsafe_code)]", "unsafe impl Send for X {}"]
)
def test_unsafe_code_would_be_seen(line: str) -> None:
    assert unsafe_uses(f"fn safe() {{}}\n{line}\n")


@pytest.mark.parametrize("line", ["#![forbid(unsafe_code)]", "// nothing unsafe here", "unsafely()"])
def test_words_about_unsafe_code_are_not_taken_for_it(line: str) -> None:
    assert not unsafe_uses(line)


@pytest.mark.parametrize("folder", ["work", "home", "root"])
def test_a_path_of_a_machine_would_be_seen(folder: str) -> None:
    assert MACHINE_PATH.search(f"see /{folder}/x/notes.md")
    assert not MACHINE_PATH.search(f"see docs/{folder}/x")


def test_a_file_above_the_cap_would_be_seen() -> None:
    assert too_long("\n" * (LINES_CAP + 1)) == 1
    assert too_long("\n" * LINES_CAP) == 0
