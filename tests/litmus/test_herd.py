"""The export to herd's C: read back, it is the same test."""

import re

import pytest
from tests.litmus import c_reader

from shadow_mmu.litmus import CATALOGUE, MODELS, find
from shadow_mmu.litmus.explore import explore
from shadow_mmu.litmus.expr import as_expr, value
from shadow_mmu.litmus.herd import export
from shadow_mmu.litmus.order import ACQ_REL, RLX
from shadow_mmu.litmus.program import Cas, Program, Rmw, Set, Thread, block, either, load, statements, store

CASES = [(test.name, case.setting) for test in CATALOGUE.values() for case in test.cases]


@pytest.mark.parametrize(("name", "setting"), CASES, ids=[" ".join(case) for case in CASES])
def test_the_export_read_back_has_the_same_verdicts(name: str, setting: str) -> None:
    program = find(name).program(setting)
    back = c_reader.read(export(name, program))
    # The exported locks write when they fail, so a model that reads program order may see fewer orders, never other verdicts.
    for model in MODELS.values():
        mine, theirs = explore(program, model).bad, explore(back, model).bad
        assert (mine is None) == (theirs is None), model.name


@pytest.mark.parametrize("name", CATALOGUE)
def test_no_register_has_the_name_of_a_location_and_braces_close(name: str) -> None:
    program = find(name).program()
    for thread in program.threads:
        registers = {getattr(one, "reg", "") for one in statements(thread.body)}
        assert not registers & set(program.locations)
    text = export(name, program)
    assert text.count("{") == text.count("}")
    assert text.count("(") == text.count(")")
    assert re.match(rf"C {re.escape(name)}\n", text)


def test_every_statement_has_its_c() -> None:
    body = block(
        load("a", "x"),
        either(value("a").eq(0), store("y", value("a") + 1), Set("b", as_expr(3))),
        Rmw("c", "x", "or", as_expr(4), ACQ_REL),
        Rmw("d", "x", "xchg", as_expr(5), RLX),
        Cas("e", "x", value("d"), as_expr(6), ACQ_REL),
    )
    text = export("all of it", Program((Thread("t", body),), value("x").eq(6), {"x": 2}))
    for line in (
        "C all-of-it",
        "{ [x]=2; [y]=0; [expected0_0]=0; }",
        "P0 (atomic_int* x, atomic_int* y, int* expected0_0) {",
        "if (a == 0) {",
        "atomic_store_explicit(y, a + 1, memory_order_relaxed);",
        "b = 3;",
        "c = atomic_fetch_or_explicit(x, 4, memory_order_acq_rel);",
        "d = atomic_exchange_explicit(x, 5, memory_order_relaxed);",
        "*expected0_0 = d;",
        "swapped_e = atomic_compare_exchange_strong_explicit(x, expected0_0, 6, memory_order_acq_rel, memory_order_relaxed);",
        "e = *expected0_0;",
        "exists ((([x]=6)))",
    ):
        assert line in text
