"""The explorer against slow and obvious counterparts, on random programs and on the textbook tests."""

import pytest
from tests.litmus import naive, random_programs

from shadow_mmu.litmus import CATALOGUE, MODELS
from shadow_mmu.litmus.explore import Bad, Explorer, explore
from shadow_mmu.litmus.expr import as_expr, value
from shadow_mmu.litmus.graph import Graph
from shadow_mmu.litmus.order import ACQ, F_NONE, F_SC, REL, RLX, Fence
from shadow_mmu.litmus.program import Await, Cas, Program, Thread, block, fence, load, lock, store

SEEDS = range(300)


def complete(program: Program, model: str) -> list[Graph]:
    return [found for found in Explorer(program, MODELS[model]).run() if isinstance(found, Graph)]


def keys(graphs: list[Graph]) -> set[naive.Key]:
    found = [naive.key(graph) for graph in graphs]
    assert len(found) == len(set(found)), "an execution was visited twice"
    return set(found)


def compare_with_the_definitions(seeds: range, limit: int) -> int:
    """Compare on random programs, large ones left out; give how many were compared."""
    compared = 0
    for seed in seeds:
        program = random_programs.program(seed)
        every = naive.candidates(program, limit)
        if every is None:
            continue
        compared += 1
        for model, allowed in (("rc11", naive.allowed_rc11), ("sc", naive.allowed_sc)):
            expected = {naive.key(graph) for graph in every if allowed(graph)}
            assert keys(complete(program, model)) == expected, f"seed {seed}, {model}"
    return compared


def compare_with_the_machines(seeds: range) -> None:
    for seed in seeds:
        program = random_programs.program(seed)
        for model, machine in (("sc", naive.outcomes_sc), ("tso", naive.outcomes_tso)):
            found = {naive.outcome_of(graph) for graph in complete(program, model)}
            assert found == machine(program), f"seed {seed}, {model}"


def test_it_visits_exactly_the_executions_that_rc11_as_printed_allows() -> None:
    assert compare_with_the_definitions(SEEDS, 1500) > 100


def test_its_outcomes_are_those_of_the_interleaving_and_the_store_buffer_machine() -> None:
    compare_with_the_machines(SEEDS)


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("first", range(1000, 3000, 100))
def test_it_does_so_on_many_more_programs(first: int) -> None:
    seeds = range(first, first + 100)
    assert compare_with_the_definitions(seeds, 20_000) > 50
    compare_with_the_machines(seeds)


def test_the_random_programs_reach_what_they_are_for() -> None:
    """A comparison proves nothing if the models never differ or no execution ever ends."""
    executions = dict.fromkeys(MODELS, 0)
    for seed in SEEDS:
        for model in MODELS:
            executions[model] += len(keys(complete(random_programs.program(seed), model)))
    assert executions["sc"] > 1000
    assert executions["tso"] > executions["sc"] + 50
    assert executions["rc11"] > executions["tso"] + 50


@pytest.mark.parametrize("name", [name for name, test in CATALOGUE.items() if test.family == "textbook"])
def test_textbook_executions_are_those_of_the_definitions(name: str) -> None:
    for case in CATALOGUE[name].cases:
        program = CATALOGUE[name].program(case.setting)
        every = naive.candidates(program)
        assert every is not None
        assert keys(complete(program, "rc11")) == {naive.key(graph) for graph in every if naive.allowed_rc11(graph)}
        for model, machine in (("sc", naive.outcomes_sc), ("tso", naive.outcomes_tso)):
            assert {naive.outcome_of(graph) for graph in complete(program, model)} == machine(program)


def dekker(fences: Fence) -> Program:
    left = block(store("x", 1), fence(fences), load("r", "y"))
    right = block(store("y", 1), fence(fences), load("r", "x"))
    return Program((Thread("a", left), Thread("b", right)), value("0:r").eq(0).both(value("1:r").eq(0)))


def test_store_buffering_has_four_executions_and_three_with_fences() -> None:
    for fences, executions in ((F_NONE, 4), (F_SC, 3)):
        for model in ("tso", "rc11"):
            found = explore(dekker(fences), MODELS[model], to_the_end=True)
            assert (found.executions, found.bad is None) == (executions, executions == 3)


def test_the_first_bad_execution_ends_the_search_unless_all_are_wanted() -> None:
    program = Program((Thread("a", block(store("x", 1))), Thread("b", block(load("r", "x")))), value("1:r").eq(0))
    first, every = (explore(program, MODELS["sc"], to_the_end=end) for end in (False, True))
    assert first.bad is not None
    assert every.bad is not None
    assert first.executions <= every.executions == 2


@pytest.mark.parametrize(("expected", "ok"), [(1, True), (2, False)], ids=["succeeds", "fails"])
def test_a_compare_exchange_acquires_only_if_it_succeeds(expected: int, *, ok: bool) -> None:
    sender = block(store("x", 1), store("y", 1, REL))
    receiver = block(Cas("r", "y", as_expr(expected), as_expr(7), ACQ), load("s", "x"))
    outcome = value("1:r").eq(1).both(value("1:s").eq(0))
    program = Program((Thread("a", sender), Thread("b", receiver)), outcome)
    assert (explore(program, MODELS["rc11"]).bad is None) is ok
    assert explore(program, MODELS["tso"]).bad is None


def test_a_wait_that_nothing_ends_is_bad() -> None:
    program = Program((Thread("a", block(Await("x", 1, RLX))),))
    found = explore(program, MODELS["rc11"]).bad
    assert found is not None
    assert (found.kind, found.text) == ("stuck", "nothing will ever end the waiting of a")


def test_a_lock_that_is_not_released_is_bad_and_a_wait_that_will_end_is_not() -> None:
    taken = Program((Thread("a", block(lock())), Thread("b", block(lock()))))
    found = [one for one in Explorer(taken, MODELS["sc"]).run() if isinstance(one, Bad)]
    assert {one.kind for one in found} == {"stuck"}
    assert len(found) == 2  # either of them has it
