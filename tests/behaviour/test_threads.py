"""Behaviour of the compiled core with each vCPU on a thread of its own. The model runs one operation at a time and has none of it."""

from collections.abc import Callable

import pytest
from tests.behaviour import races

from shadow_mmu import _native
from shadow_mmu.types import OpKind


def until_they_met(round_: Callable[[], int], often: int) -> None:
    """Repeat a round until the vCPUs met so often in all; on a machine with one busy CPU that takes a few more."""
    met = 0
    for _ in range(200):
        met += round_()
        if met >= often:
            return
    pytest.fail(f"in 200 rounds the vCPUs met {met} times, expected {often}")


@pytest.mark.parametrize("policy", ["locked", "seed", "lru:3"])
def test_e075_no_old_tlb_entry_is_used_once_a_remote_flush_has_returned(policy: str) -> None:
    until_they_met(lambda: races.flush_round(_native, None, policy), 100)


@pytest.mark.parametrize(
    ("policy", "flush"),
    [
        ("locked", OpKind.WRITE_CR3),
        ("seed", OpKind.WRITE_CR3),
        ("lru:3", OpKind.WRITE_CR3),
        ("seed", OpKind.INVLPG),
        ("lru:3", OpKind.INVLPG),
    ],
)
def test_e051_who_flushes_after_a_table_was_written_sees_what_was_written(policy: str, flush: OpKind) -> None:
    """D.1 and D.2 as the guest sees them; their orderings one by one are the loom tests' (rust/core/src/models)."""
    until_they_met(lambda: races.publication_round(_native, None, policy, flush), 100)


def test_e105_a_store_that_races_with_an_accessed_or_dirty_bit_is_never_lost() -> None:
    until_they_met(lambda: races.lost_store_round(_native, None), 200)


@pytest.mark.parametrize("forms", [races.two_tables, races.large_page_and_table])
def test_f02_f03_a_fault_between_a_store_and_its_zap_fills_no_wrong_page(forms: races.Forms) -> None:
    """It found, besides, that a fault and a storing vCPU could take turns for ever: each walk was void when its turn came."""
    seeds = iter(range(1000))
    until_they_met(lambda: races.toggle_round(_native, None, forms, next(seeds)), 1000)
