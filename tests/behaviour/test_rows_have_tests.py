"""Each row of the semantics that this version promises has a test that carries its id, and on the compiled core at that.

A row counts as tested on the core by a test here (they run on both implementations, or on the core's threads), by a scenario
of tests/mutants, or by a test beside the Rust code.
"""

import ast
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = [
    "E001",
    "E002",
    "E003",
    "E004",
    "E005",
    "E006",
    "E007",
    "E008",
    "E010",
    "E011",
    "E012",
    "E014",
    "E015",
    "E016",
    "E017",
    "E018",
    "E019",
    "E020",
    "E022",
    "E024",
    "E025",
    "E026",
    "E028",
    "E032",
    "E034",
    "E035",
    "E036",
    "E037",
    "E040",
    "E041",
    "E042",
    "E043",
    "E044",
    "E046",
    "E047",
    "E048",
    "E049",
    "E050",
    "E051",
    "E052",
    "E053",
    "E057",
    "E062",
    "E063",
    "E070",
    "E074",
    "E075",
    "E100",
    "E101",
    "E102",
    "E103",
    "E104",
    "E105",
    "E106",
    "E107",
    "E108",
    "E109",
    "E110",
    "E111",
    "E112",
    "E113",
    "E114",
    "E116",
    "E130",
    "E131",
    "E132",
    "E133",
    "E134",
    "E135",
    "E136",
    "E137",
    "E138",
    "E139",
    "E140",
    "E142",
    "E143",
    "E144",
    "E148",
    "E149",
    "E151",
    "E162",
    "E164",
]
MODELS = {
    "E051": {
        "p1_a_flush_that_saw_the_signal_sees_the_marks",
        "p1b_the_vcpu_that_stored_sees_the_marks",
        "p4_a_root_seen_clean_has_its_leaves_synced",
    },
    "E075": {"p3_a_sync_waits_for_the_stores_under_way"},
    "E149": {"p10_a_parked_root_is_not_freed"},
    "E151": {"p5_the_request_brings_the_invalid_role"},
    "E156": {"p8b_no_written_page_is_forgotten"},
    "E157": {"p8_a_protection_is_never_undone"},
    "E159": {"p7_no_spte_of_a_page_that_was_given_back_survives"},
    "E161": {"p6_a_page_is_not_freed_under_a_walk", "p5_nothing_is_freed_under_a_vcpu_on_an_obsolete_root"},
}
"""Rows about the order between threads: the models that explore it, each with twins that must fail."""
RUST_TEST = re.compile(r"#\[test\]\s*(?:#\[[^\]]*\]\s*)*fn (\w+)\(")


@cache
def python_tests(folder: str) -> set[str]:
    """Return the names of the tests in the files of a folder of tests/."""
    trees = (ast.parse(path.read_text()) for path in sorted((ROOT / "tests" / folder).glob("test_*.py")))
    return {
        node.name
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


@cache
def rust_tests() -> set[str]:
    """Return the names of the tests beside the Rust code and in rust/*/tests."""
    sources = (path for path in sorted((ROOT / "rust").rglob("*.rs")) if "target" not in path.parts)
    return {name for path in sources for name in RUST_TEST.findall(path.read_text())}


def by_row(names: set[str]) -> dict[str, set[str]]:
    """Group test names by the ids in them: ``test_e001_...``, ``e116_...``, ``f02_f03_...``."""
    rows = defaultdict(set)
    for name in names:
        for part in name.removeprefix("test_").split("_"):
            if not re.fullmatch(r"[a-z]\d+", part):
                break
            rows[part.upper()].add(name)
    return rows


def test_rows_are_found_in_names_and_only_at_their_start() -> None:
    found = by_row({"test_e001_back", "e116_canonical", "test_f02_f03_race", "test_zap_e002_late"})
    assert found == {
        "E001": {"test_e001_back"},
        "E116": {"e116_canonical"},
        "F02": {"test_f02_f03_race"},
        "F03": {"test_f02_f03_race"},
    }


@pytest.mark.parametrize("row", ROWS)
def test_the_row_has_a_test_on_the_compiled_core(row: str) -> None:
    assert by_row(python_tests("behaviour"))[row] | by_row(rust_tests())[row], f"no test carries {row}"


@pytest.mark.parametrize("row", sorted(MODELS))
def test_the_row_has_its_models_with_twins(row: str) -> None:
    names = rust_tests()
    for model in MODELS[row]:
        assert model in names
        protocol = model.split("_")[0]
        assert [name for name in names if name.startswith(f"{protocol}_twin_")], f"{model} has no twin"


def test_each_row_is_named_once() -> None:
    assert len(ROWS) == len(set(ROWS)) == 82
