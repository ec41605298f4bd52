"""A module uses its own layer and lower ones: the table in docs/architecture.md is the rule, `use crate::` the evidence."""

import ast
import re
from collections.abc import Iterator

import pytest
from tests.meta.tree import CORE, ROOT, core_sources, production, without_comments

LAYER_ROW = re.compile(r"^L(\d)\s+(.+?)\s*$", re.MULTILINE)


def layer_table() -> dict[str, int]:
    """Return the layer of each top-level module of the core, as the architecture says it."""
    text = (ROOT / "docs/architecture.md").read_text()
    block = re.search(r"```layers\n(.*?)```", text, re.DOTALL)
    assert block, "docs/architecture.md has no ```layers block"
    rows = LAYER_ROW.findall(block[1])
    return {module: int(layer) for layer, modules in rows for module in modules.split()}


def top_level(items: str) -> Iterator[str]:
    """Yield the first name of each item of `a::{b, c}, d` at depth 0."""
    depth, item = 0, ""
    for char in f"{items},":
        depth += (char == "{") - (char == "}")
        if char == "," and depth == 0:
            if name := re.match(r"\s*(\w+)", item):
                yield name[1]
            item = ""
        else:
            item += char


def used_modules(code: str) -> set[str]:
    """Return the top-level modules that Rust code names as `crate::...`."""
    used: set[str] = set()
    for match in re.finditer(r"\bcrate::(?:(\w+)|\{)", code):
        if match[1]:
            used.add(match[1])
            continue
        depth = 1
        for end in range(match.end(), len(code)):
            depth += (code[end] == "{") - (code[end] == "}")
            if depth == 0:
                used.update(top_level(code[match.end() : end]))
                break
    return used


def test_every_module_of_the_core_has_a_layer_and_the_table_names_no_other() -> None:
    modules = {path.relative_to(CORE).parts[0].removesuffix(".rs") for path in core_sources()} - {"lib"}
    # The atomics come from rust/sync under the name `sync`.
    assert set(layer_table()) == modules | {"sync"}


def test_modules_use_their_own_layer_and_lower_ones() -> None:
    table = layer_table()
    upward = []
    seen = 0
    for path in core_sources():
        module = path.relative_to(CORE).parts[0].removesuffix(".rs")
        if module == "lib":
            continue
        for used in used_modules(without_comments(production(path.read_text()))):
            seen += 1
            assert used in table, f"{path.relative_to(ROOT)} uses crate::{used}, which has no layer"
            if table[used] > table[module]:
                upward.append(f"{path.relative_to(ROOT)} (L{table[module]}) uses {used} (L{table[used]})")
    assert seen > 50
    assert not upward


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("use crate::addr::{Gfn, Gpa};", {"addr"}),
        ("use crate::{\n    addr::{Gfn, Gpa},\n    mmu::zap::{A, B},\n    vm,\n};", {"addr", "mmu", "vm"}),
        ("let x = crate::run::work(3);", {"run"}),
        ("pub(crate) fn crates() {}", set()),
    ],
)
def test_uses_are_read_in_every_form(code: str, expected: set[str]) -> None:
    assert used_modules(code) == expected


def imported(source: str) -> set[str]:
    """Return the modules that a Python file imports, absolute ones only."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


# What the model shares with the package: vocabulary, never behaviour.
SHARED = ("shadow_mmu.cpu", "shadow_mmu.errors", "shadow_mmu.types", "shadow_mmu.policy", "shadow_mmu.model")


def foreign(source: str) -> set[str]:
    """Return what a file of the model imports from the package beside the vocabulary."""
    ours = {name for name in imported(source) if name.startswith("shadow_mmu.")}
    return {name for name in ours if not name.startswith(SHARED)}


def test_the_model_knows_neither_the_core_nor_the_package_around_it() -> None:
    model = sorted((ROOT / "python/shadow_mmu/model").rglob("*.py"))
    assert len(model) > 10
    found = {path.name: names for path in model if (names := foreign(path.read_text()))}
    assert not found


def test_a_model_that_asked_the_core_would_be_seen() -> None:
    assert foreign("from shadow_mmu import _native") == {"shadow_mmu._native"}
    assert foreign("import shadow_mmu.vm") == {"shadow_mmu.vm"}
    assert not foreign("from shadow_mmu.types import OpKind\nfrom .walk import walk")
