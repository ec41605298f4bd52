"""Data races and lifetimes."""

import pytest

from shadow_mmu.litmus import MODELS
from shadow_mmu.litmus.explore import explore
from shadow_mmu.litmus.order import ACQ, NA, REL, RLX, Order
from shadow_mmu.litmus.program import Alloc, Await, Block, Free, Program, Thread, block, load, store


def wrong(*bodies: Block, model: str = "rc11") -> str | None:
    threads = tuple(Thread(f"t{number}", body) for number, body in enumerate(bodies))
    bad = explore(Program(threads), MODELS[model]).bad
    if bad is None:
        return None
    assert bad.kind == "race"
    return bad.text


def handed_over(first: Block, then: Block, release: Order, acquire: Order) -> tuple[Block, Block]:
    """Return two threads of which the second goes on when the first is done."""
    return block(first, store("flag", 1, release)), block(Await("flag", 1, acquire), then)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("left", "right", "race"),
    [
        (store("x", 1, NA), store("x", 2, NA), True),
        (store("x", 1, NA), load("r", "x", NA), True),
        (store("x", 1, NA), load("r", "x", RLX), True),
        (store("x", 1, RLX), load("r", "x", NA), True),
        (load("r", "x", NA), load("r", "x", NA), False),
        (store("x", 1, RLX), store("x", 2, RLX), False),
        (store("x", 1, NA), load("r", "y", NA), False),
    ],
)
def test_two_accesses_race_if_one_writes_and_one_is_plain(left: Block, right: Block, model: str, *, race: bool) -> None:
    assert wrong(block(left), block(right), model=model) == ("data race on x" if race else None)


def test_what_happens_before_does_not_race() -> None:
    write, read = block(store("x", 1, NA)), block(load("r", "x", NA))
    assert wrong(*handed_over(write, read, REL, ACQ)) is None
    assert wrong(*handed_over(write, read, RLX, ACQ)) == "data race on x"
    assert wrong(*handed_over(write, read, REL, RLX)) == "data race on x"
    # Stronger models synchronise through every read.
    assert wrong(*handed_over(write, read, RLX, RLX), model="tso") is None


@pytest.mark.parametrize("model", MODELS)
def test_a_use_after_the_freeing_is_bad_in_one_thread_and_across_threads(model: str) -> None:
    free, use = block(Free("x")), block(load("r", "x"))
    assert wrong(block(free, use), model=model) == "x is used after it was freed"
    assert wrong(block(use, free), model=model) is None
    assert wrong(*handed_over(free, use, REL, ACQ), model=model) == "x is used after it was freed"
    assert wrong(block(free, free), model=model) == "x is used after it was freed"
    assert wrong(*handed_over(use, free, REL, ACQ), model=model) is None


def test_a_use_beside_the_freeing_is_bad() -> None:
    assert wrong(block(Free("x")), block(load("r", "x"))) == "x is freed while it is used"
    assert wrong(*handed_over(block(load("r", "x")), block(Free("x")), RLX, ACQ)) == "x is freed while it is used"


def test_a_use_before_the_allocation_is_bad() -> None:
    birth = block(Alloc("x"), store("x", 7))
    assert wrong(*handed_over(birth, block(load("r", "x")), REL, ACQ)) is None
    assert wrong(*handed_over(birth, block(load("r", "x")), RLX, ACQ)) == "x is used before it is allocated"
