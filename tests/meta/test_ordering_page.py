"""docs/memory-ordering.md has every field of every tag, and its names and verdicts are true."""

from functools import cache

import pytest
from tests.meta import ordering
from tests.meta.ordering import MODELS, PAGE, VERDICTS, Quoted, Section
from tests.twins import table as twin_table

from shadow_mmu.litmus import CATALOGUE, run

TAG = """### `some-tag`

| | |
|---|---|
| writes | one |
| reads | another |
| needed | an order |
| weakened | it breaks |
| KVM | - |
| models | `P1` |
| twins | `P1 twin, walk Relaxed` |
| litmus | `p1_publish3` |

| litmus | weakening | SC | TSO | RC11 |
|---|---|---|---|---|
| `p1_publish3` | - | ok | ok | ok |
| `p1_publish3` | `O_WALK=RLX` | ok | ok | BAD |
"""
RIGHT, TWINS = ["P1"], ["P1 twin, walk Relaxed"]


@cache
def page() -> list[Section]:
    return ordering.sections(PAGE.read_text())


@cache
def computed(litmus: str, weaken: str) -> tuple[str, ...]:
    return tuple(run(litmus, weaken, model).outcome for model in MODELS)


def test_every_tag_has_every_field_with_names_that_exist() -> None:
    right, twins = twin_table.right_forms(), twin_table.named()
    assert len(page()) > 15
    assert [gap for section in page() for gap in ordering.gaps(section, right, twins)] == []


def test_the_index_lists_the_sections_in_their_order() -> None:
    assert ordering.index(PAGE.read_text()) == [section.tag for section in page()]


def test_every_twin_of_the_sources_has_its_place_on_the_page() -> None:
    placed = {name for section in page() for name in section.names("twins")}
    assert sorted(set(twin_table.named()) - placed) == []


def test_the_verdicts_on_the_page_are_what_the_explorer_computes() -> None:
    lines = [line for section in page() for line in section.quoted]
    assert len(lines) > 60
    assert [line for line in lines if line.verdicts != computed(line.litmus, line.weaken)] == []


def test_the_page_of_verdicts_has_every_case_of_the_protocols_as_the_explorer_computes_it() -> None:
    lines = ordering.table(VERDICTS.read_text())
    cases = {
        (test.name, case.setting) for test in CATALOGUE.values() if test.family == "protocol" for case in test.cases
    }
    assert {(line.litmus, line.weaken) for line in lines} == cases
    assert len(lines) == len(cases)
    assert [line for line in lines if line.verdicts != computed(line.litmus, line.weaken)] == []


def test_beside_each_verdict_stands_the_model_or_twin_that_shows_it() -> None:
    right, twins = twin_table.right_forms(), twin_table.named()
    lines = ordering.table(VERDICTS.read_text())
    assert [wrong for line in lines for wrong in ordering.disagreements(line, right, twins)] == []
    assert not [line for line in lines if line.name.startswith("none:")]


def test_a_whole_section_has_no_gap() -> None:
    (section,) = ordering.sections(TAG)
    assert ordering.gaps(section, RIGHT, TWINS) == []
    assert [line.verdicts[-1] for line in section.quoted] == ["ok", "BAD"]


@pytest.mark.parametrize("name", ordering.FIELDS)
def test_a_field_that_is_missing_would_be_seen(name: str) -> None:
    text = "\n".join(line for line in TAG.splitlines() if not line.startswith(f"| {name} |") or "SC" in line)
    (section,) = ordering.sections(text)
    assert f"some-tag: no field {name!r}" in ordering.gaps(section, RIGHT, TWINS)


@pytest.mark.parametrize(
    ("old", "new", "gap"),
    [
        ("`P1`", "`P99`", "models: there is no 'P99'"),
        ("walk Relaxed`", "walk relaxed`", "twins: there is no 'P1 twin, walk relaxed'"),
        ("| models | `P1` |", "| models | none |", "models: 'none' names nothing and gives no reason"),
        ("| twins | `P1 twin, walk Relaxed` |", "| twins | none: tbd |", "names nothing and gives no reason"),
        ("ok | ok | BAD", "ok | ok | ok", "litmus p1_publish3: no weakened form that is BAD"),
        ("| - | ok | ok | ok |", "| - | ok | ok | BAD |", "no verdict of the right form, or it is not ok"),
        ("`p1_publish3` | `O", "`p4_clean` | `O", "a verdict of p4_clean, which the field does not name"),
    ],
)
def test_a_name_or_verdict_that_is_not_there_would_be_seen(old: str, new: str, gap: str) -> None:
    (section,) = ordering.sections(TAG.replace(old, new))
    assert any(gap in found for found in ordering.gaps(section, RIGHT, TWINS))


def test_a_stated_reason_stands_for_a_name() -> None:
    reason = "none: the count orders nothing and is read by nobody"
    text = TAG.replace("| models | `P1` |", f"| models | {reason} |")
    (section,) = ordering.sections(text)
    assert ordering.gaps(section, RIGHT, TWINS) == []


@pytest.mark.parametrize(
    ("verdict", "name", "wrong"),
    [("ok", "P1", False), ("BAD", "P1", True), ("ok", "P1 twin, walk Relaxed", True), ("BAD", "none: tbd", True)],
)
def test_a_name_that_shows_something_else_would_be_seen(verdict: str, name: str, wrong: bool) -> None:  # noqa: FBT001
    line = Quoted("p1_publish3", "", ("ok", "ok", verdict), name)
    assert bool(ordering.disagreements(line, RIGHT, TWINS)) == wrong
