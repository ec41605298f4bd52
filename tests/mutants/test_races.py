"""The races of tests/behaviour notice what they are there for."""

from collections.abc import Callable
from types import ModuleType

import pytest
from tests.behaviour import races

from shadow_mmu.types import OpKind


def repeat(round_: Callable[[], int]) -> None:
    """Run enough rounds for vCPUs that share one CPU with others."""
    for _ in range(50):
        round_()


def test_e075_the_race_notices_a_flush_that_reaches_nobody(mutant_build: ModuleType) -> None:
    with pytest.raises(AssertionError, match="an old TLB entry was used after the flush had returned"):
        repeat(lambda: races.flush_round(mutant_build, "no-remote-flush", "lru:3"))


@pytest.mark.parametrize("mutant", ["mark-stops-early", "skip-sync"])
def test_e051_the_race_notices_a_root_that_looks_clean_and_a_sync_that_does_nothing(
    mutant: str, mutant_build: ModuleType
) -> None:
    with pytest.raises(AssertionError, match="a stale entry was used after the flush"):
        repeat(lambda: races.publication_round(mutant_build, mutant, "lru:3", OpKind.WRITE_CR3))
