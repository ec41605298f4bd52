"""Mutated dumps: typed errors only, in little memory and little time; a million of them in the soak run."""

import mmap
import re
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import pytest
from tests.dumps.fuzz import LIMIT, corpus, fuzz, input_of

BOUND = (16 << 20) + 60 * LIMIT
"""Most bytes that one dump of the corpus may cost: docs/dumps.md says how it comes about."""
GROWTH = 64 << 20
"""Most bytes by which the peak of the whole process may grow over a run: what every input may cost together, for none leaves anything.

`BOUND` is asserted for each of the inputs whose memory is traced; this one is asserted for all of them, whoever allocates.
"""
SECONDS = 20.0
"""No input hangs; the slowest takes some tenths of a second, on a machine that is busy too."""


def measured(peaks: list[int]) -> Callable[[Callable[[], str]], str]:
    """Return what fuzz() calls: it measures memory and time of each input."""

    def each(run: Callable[[], str]) -> str:
        tracemalloc.reset_peak()
        before, start = tracemalloc.get_traced_memory()[0], perf_counter()
        end = run()
        peaks.append(tracemalloc.get_traced_memory()[1] - before)
        assert peaks[-1] <= BOUND
        assert perf_counter() - start < SECONDS
        return end

    return each


def timed(run: Callable[[], str]) -> str:
    """Measure the time only."""
    start = perf_counter()
    end = run()
    assert perf_counter() - start < SECONDS
    return end


def check_ends(ends: Counter[str], count: int) -> None:
    """Check that the mutations neither break everything nor nothing."""
    assert sum(ends.values()) == count
    assert set(ends) == {"read", "DumpError", "UnsupportedModeError"}
    assert ends["read"] > count // 20
    assert ends["DumpError"] > count // 10


def forget_the_peak() -> None:
    """Let the kernel measure the peak from now on: other tests of this process may have had more (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_of_the_process() -> int:
    """Return the most bytes of memory that this process had at once since :func:`forget_the_peak`."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    assert found
    return int(found[1]) << 10


def run(seed: int, measure: int, count: int) -> None:
    """Use ``count`` inputs, and measure the memory of the first ones, which costs ten times the time."""
    peaks: list[int] = []
    forget_the_peak()
    before = peak_of_the_process()
    tracemalloc.start()
    try:
        ends = fuzz(seed, measure, each=measured(peaks))
    finally:
        tracemalloc.stop()
    print(f"{max(peaks):,} bytes at most, {BOUND:,} allowed")
    assert max(peaks) > 1 << 20  # the measurement sees what numpy allocates
    ends += fuzz(seed + 1, count - measure, each=timed)
    growth = peak_of_the_process() - before
    print(f"the process grew by {growth:,} bytes at most, {GROWTH:,} allowed; {dict(ends)}")
    assert growth <= GROWTH
    check_ends(ends, count)


def test_2000_mutated_dumps_give_typed_errors_in_little_memory() -> None:
    run(1, 500, 2000)


@pytest.mark.soak
def test_a_million_mutated_dumps_give_typed_errors_in_little_memory() -> None:
    run(1000, 20_000, 1_000_000)


def test_memory_that_is_kept_would_be_seen() -> None:
    kept = []
    forget_the_peak()
    before = peak_of_the_process()

    def hoard(run: Callable[[], str]) -> str:
        # Fresh memory of the kernel: what other tests gave back to the allocator would do for 1 MiB of bytes.
        fresh = mmap.mmap(-1, 1 << 20)
        fresh.write(bytes([1]) * (1 << 20))
        kept.append(fresh)
        return run()

    fuzz(1, 2 * GROWTH >> 20, each=hoard)
    assert peak_of_the_process() - before > GROWTH


def test_an_input_can_be_made_again() -> None:
    assert input_of(1, 17) == input_of(1, 17)
    assert len({input_of(1, number) for number in range(50)}) > 45


def test_the_corpus_itself_is_good() -> None:
    assert len(corpus()) == 5


def test_an_error_that_is_not_typed_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_path: str) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("tests.dumps.fuzz.open_dump", broken)
    with pytest.raises(ZeroDivisionError) as seen:
        fuzz(1, 1, each=timed)
    assert "input_of(1, 0)" in seen.value.__notes__[0]
