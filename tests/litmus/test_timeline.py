"""The timeline of a bad execution: a true order of its steps, its weak ones marked; drawn as SVG too."""

from xml.etree import ElementTree as ET

import pytest

from shadow_mmu.litmus import CATALOGUE, MODELS, Verdict, run
from shadow_mmu.litmus.expr import value
from shadow_mmu.litmus.order import RLX
from shadow_mmu.litmus.program import Await, Program, Thread, block, store
from shadow_mmu.litmus.svg import draw
from shadow_mmu.litmus.timeline import Timeline
from shadow_mmu.litmus.verdict import judge

BAD = [
    verdict
    for test in CATALOGUE.values()
    for case in test.cases
    for model in MODELS
    if not (verdict := run(test.name, case.setting, model)).ok
]
SVG = "{http://www.w3.org/2000/svg}"


def text(verdict: Verdict) -> str:
    return f"{verdict.test} {verdict.weaken} {verdict.model}"


def drawn(verdict: Verdict) -> Timeline:
    assert verdict.timeline is not None
    return verdict.timeline


def weak(verdict: Verdict) -> int:
    return sum(step.kind == "weak" for step in drawn(verdict).steps)


@pytest.mark.parametrize("verdict", [one for one in BAD if one.model == "sc"], ids=text)
def test_under_sc_a_timeline_is_an_interleaving(verdict: Verdict) -> None:
    """Replayed on one memory, every read returns what was written last."""
    timeline = drawn(verdict)
    memory = {
        location: str(number) for location, number in CATALOGUE[verdict.test].program(verdict.weaken).initial.items()
    }
    for step in timeline.steps:
        assert step.kind != "weak"
        words = step.text.split()
        match words:
            case ["alloc" | "free" as life, location]:
                memory[location] = "freed" if life == "free" else "0"
            case [location, "is", number, *_]:
                assert memory.get(location, "0") == number
            case [location, "=", number, *_]:
                memory[location] = number
            case [location, before, "->", number, *_]:
                assert memory.get(location.rstrip(":"), "0") == before
                memory[location.rstrip(":")] = number


@pytest.mark.parametrize("verdict", BAD, ids=text)
def test_the_rows_keep_program_order_and_writes_come_before_their_reads(verdict: Verdict) -> None:
    timeline = drawn(verdict)
    assert [step.number for step in timeline.steps] == list(range(1, len(timeline.steps) + 1))
    assert all(step.source is None or step.source < step.number for step in timeline.steps)
    assert all(0 <= step.cpu < len(timeline.cpus) for step in timeline.steps)
    failed = [step for step in timeline.steps if step.kind == "bad"]
    assert len(failed) == (verdict.kind == "claim")


@pytest.mark.parametrize(
    "verdict", [one for one in BAD if one.kind in {"claim", "outcome"} and run(one.test, one.weaken, "sc").ok], ids=text
)
def test_what_sc_forbids_shows_at_least_one_weak_step(verdict: Verdict) -> None:
    assert weak(verdict) >= 1


def test_the_story_of_the_patch_is_told_in_three_columns() -> None:
    timeline = drawn(run("P1", "O_SPTE=RLX"))
    assert timeline.cpus == ("host", "guest A", "guest B")
    told = [(timeline.cpus[step.cpu], step.text) for step in timeline.steps]
    order = [
        ("host", "uchild = 1"),
        ("host", "spte = 1"),
        ("guest A", "spte is 1 ACQ"),
        ("guest A", "gpte = 1"),
        ("guest A", "sig = 1 REL"),
        ("guest B", "sig is 1 ACQ"),
        ("guest B", "uchild is 0 ACQ"),
        ("guest B", "leaf is 0"),
    ]
    places = [told.index(one) for one in order]
    assert places == sorted(places)
    (old,) = (step for step in timeline.steps if step.kind == "weak")
    assert (old.text, old.note) == ("uchild is 0 ACQ", "older than step 3 (uchild = 1)")


def test_the_same_bug_without_weak_memory_has_no_weak_step() -> None:
    for model in MODELS:
        assert weak(run("P1", "MUT_SPTE_FIRST", model)) == 0


def test_a_write_that_goes_under_another_is_marked() -> None:
    (step,) = (step for step in drawn(run("2+2W", "F_0=F_NONE")).steps if step.kind == "weak")
    assert step.note == "goes under step 1 (x = 1)"


def test_first_values_waits_and_the_outcome_are_told() -> None:
    assert drawn(run("P3", "MUT_NO_WAIT")).initial == "uchild = 1, spte = 1, all else 0"
    assert drawn(run("SB", "F_0=F_NONE")).initial == "all 0"
    assert drawn(run("SB", "F_0=F_NONE")).verdict == "the forbidden outcome: 0:r0 = 0, 1:r1 = 0 at the end"
    program = Program((Thread("a", block(store("y", 1), Await("x", 1, RLX))),), value("x").eq(1))
    stuck = drawn(judge("stuck", "", program, MODELS["rc11"]))
    assert [step.text for step in stuck.steps] == ["y = 1", "waits for x = 1"]
    assert stuck.verdict == "nothing will ever end the waiting of a"


@pytest.mark.parametrize("verdict", BAD, ids=text)
def test_the_drawing_is_well_formed_and_holds_every_step(verdict: Verdict) -> None:
    timeline = drawn(verdict)
    picture = ET.fromstring(draw(text(verdict), timeline))  # noqa: S314  our own text
    texts = [element.text for element in picture.iter(f"{SVG}text")]
    for wanted in (*timeline.cpus, *(step.text for step in timeline.steps), timeline.verdict):
        assert wanted in texts
    arrows = [path for path in picture.iter(f"{SVG}path") if path.get("class") == "from"]
    assert len(arrows) == sum(step.source is not None for step in timeline.steps)
    width = float(picture.get("width") or 0)
    for element in picture.iter(f"{SVG}text"):
        if element.get("text-anchor") == "start":
            assert float(element.get("x") or 0) + 7.5 * len(element.text or "") <= width
    for box in list(picture.iter(f"{SVG}rect"))[1:]:
        assert 0 <= float(box.get("x") or 0) <= width - float(box.get("width") or 0)
