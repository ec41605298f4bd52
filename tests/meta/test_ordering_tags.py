"""Each atomic access of the core and of the raw locks carries `// ORDERING(tag): why`, and each tag has a section in docs/memory-ordering.md."""

import re

import pytest
from tests.meta import ordering
from tests.meta.tree import ROOT, core_sources, lock_sources, production

# An access with its order on the same line: `x.load(Ordering::Acquire)`, `x.store(1, O::LEAVE)`, `fence(order)`.
ACCESS = re.compile(
    r"(\.(load|store|swap|fetch_\w+|compare_exchange(_weak)?)\(.*(\bOrdering::\w+|\b(O|\w*Order)::[A-Z_]+))|(?<!fn )\bfence\("
)
TAG = re.compile(r"// ORDERING\(([a-z-]+(?:, [a-z-]+)*)\):")
ABOVE = 3


def untagged(lines: list[str]) -> list[int]:
    """Return the line numbers of atomic accesses without a tag on the comment above them."""
    found = []
    for number, line in enumerate(lines):
        code = line.split("//")[0]
        if not ACCESS.search(code) or code.lstrip().startswith(("use ", "pub use ")):
            continue
        if not any(TAG.search(above) for above in lines[max(0, number - ABOVE) : number + 1]):
            found.append(number + 1)
    return found


def documented_tags() -> set[str]:
    """Return the tags that have a section."""
    return {section.tag for section in ordering.sections(ordering.PAGE.read_text())}


def test_every_atomic_access_of_the_core_says_why_its_order_is_enough() -> None:
    accesses = 0
    bare = []
    for path in (*core_sources(), *lock_sources()):
        lines = production(path.read_text())
        accesses += sum(bool(ACCESS.search(line.split("//")[0])) for line in lines)
        bare += [f"{path.relative_to(ROOT)}:{number}" for number in untagged(lines)]
    assert accesses > 30
    assert not bare, "atomic accesses without `// ORDERING(tag): why` above them"


def test_tags_and_sections_are_the_same_set() -> None:
    sources = (*core_sources(), *lock_sources())
    tags = {tag for path in sources for listed in TAG.findall(path.read_text()) for tag in listed.split(", ")}
    assert tags == documented_tags()


def test_no_access_is_sequentially_consistent() -> None:
    """Loom takes a SeqCst access for AcqRel: only a fence may carry SeqCst."""
    access = re.compile(r"\.(load|store|swap|fetch_\w+|compare_exchange(_weak)?)\(.*SeqCst")
    sources = (*core_sources(), *lock_sources())
    found = [str(path) for path in sources if any(access.search(line) for line in production(path.read_text()))]
    assert not found


def test_every_model_in_the_sources_runs_under_the_filter_of_make_loom() -> None:
    """`make loom` takes the tests of modules named `models`; a file of models elsewhere would not run."""
    assert "models::" in (ROOT / "Makefile").read_text()
    sources = [path for crate in ("core", "sync") for path in (ROOT / "rust" / crate / "src").rglob("*.rs")]
    explored = [path for path in sources if re.search(r"loom::|\bholds\(|\bbreaks\(", path.read_text())]
    explored = [path for path in explored if "#[test]" in path.read_text()]
    assert len(explored) >= 4
    assert [path for path in explored if "models" not in path.with_suffix("").parts] == []


@pytest.mark.parametrize(
    "access",
    [
        "x.load(Ordering::Relaxed);",
        "self.epoch.store(epoch + 1, O::LEAVE);",
        "slot.store(spte, KvmOrder::STORE_SPTE);",
        "fence(order);",
        "if word.compare_exchange_weak(a, b, Ordering::Release, Ordering::Relaxed).is_ok() {",
    ],
)
def test_an_access_without_its_tag_would_be_seen(access: str) -> None:
    assert untagged(["fn f() {", access]) == [2]
    assert untagged(["// ORDERING(some-tag): because", "// it is so", access]) == []
    assert untagged(["// ORDERING(one-tag, another-tag): because", access]) == []
    assert untagged(["// ORDERING(some-tag): because", "", "", "", access]) == [5]


@pytest.mark.parametrize(
    "line",
    ["use core::sync::atomic::{Ordering, fence};", "memory.store(gpa, value, 8)", "// x.load(Ordering::Relaxed)"],
)
def test_what_is_no_access_needs_no_tag(line: str) -> None:
    assert untagged([line]) == []
