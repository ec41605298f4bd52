"""Statistics add up (E164), and random operations break no invariant (E162)."""

import pytest
from tests.behaviour.guest import PAGE, POLICIES, USED, Guest, GuestMaker
from tests.behaviour.machines import AnyMachine
from tests.model.workload import MEMORY, operations

from shadow_mmu.model import LegalTranslations
from shadow_mmu.model.constants import COUNTERS, LOCK_REASONS
from shadow_mmu.workloads.world import MachineConfig


def test_e164_each_fault_is_counted_in_one_class(guest: GuestMaker) -> None:
    one, (a, _) = guest("lru:3")
    window = one.window(a, a)
    outside = one.window(a, 0x7000000)
    one.visit(a)
    with one.moved() as moved:
        one.read(PAGE)
        one.read(0x9000)
        one.store(window + 8 * 400, 0)
        one.store(window + 8 * 401, 0)
        one.read(outside)
    assert moved["pf_taken"] == 5 - 1  # the read of PAGE hits what the fetch left in the TLB
    assert {name: moved[name] for name in ("pf_guest", "pf_emulate", "mmio_exits")} == {
        "pf_guest": 1,
        "pf_emulate": 2,
        "mmio_exits": 1,
    }
    assert "pf_fixed" not in moved


def busy_guest(guest: GuestMaker) -> tuple[Guest[AnyMachine], list[int]]:
    """Return a guest of 2 vCPUs with an unsync table under A, a large page, and two roots."""
    one, (a, b) = guest("lru:3", vcpus=2)
    window = one.window(a, one.entry(a, PAGE))
    one.map(a, 5 << 30, 0x600000, USED, level=2)
    one.visit(b, a)
    one.store(window, 0x500000 | USED)
    one.write(5 << 30)
    one.vcpu = 1
    one.visit(b, b)
    return one, [a, b]


def test_e164_statistics_are_sums_over_the_vcpus(guest: GuestMaker) -> None:
    one, _ = busy_guest(guest)
    stats = one.machine.stats()
    assert tuple(stats["counters"]) == COUNTERS
    assert tuple(stats["lock"]["acquisitions"]) == LOCK_REASONS
    for name, total in stats["counters"].items():
        assert total == sum(vcpu["counters"][name] for vcpu in stats["per_vcpu"])
    for name, total in stats["cr3"].items():
        assert total == sum(vcpu["cr3"][name] for vcpu in stats["per_vcpu"])
    assert (stats["cr3"]["writes"], stats["cr3"]["same"]) == (2, 1)
    assert stats["shadow_pages_live"] == len(one.machine.shadow_pages()) <= stats["shadow_pages_peak"]
    assert stats["sync_pages"] >= stats["sync_pages_unchanged"]


def test_e164_unsync_is_a_gauge_of_unsync_pages(guest: GuestMaker) -> None:
    one, (a, _) = busy_guest(guest)
    assert one.counters()["mmu_unsync"] == sum(page["unsync"] for page in one.machine.shadow_pages()) == 1
    one.vcpu = 0
    one.cr3(a)
    one.enter()
    assert one.counters()["mmu_unsync"] == 0


@pytest.mark.parametrize("policy", [*POLICIES, "lru:16"])
@pytest.mark.parametrize(("seed", "tlb_entries"), [(11, 1536), (12, 0), (13, 5)])
def test_e162_random_operations_break_no_invariant_and_give_legal_outcomes(
    guest: GuestMaker, policy: str, seed: int, tlb_entries: int
) -> None:
    machine = guest.machine(MachineConfig(policy, 2, tlb_entries, slots=((0, MEMORY, False),)))
    oracle = LegalTranslations([(0, MEMORY)], 2)
    for number, op in enumerate(operations(seed, 500)):
        outcome = machine.execute(op)
        complaint = oracle.judge(op, outcome)
        assert complaint is None, f"operation {number} {op}: {outcome}: {complaint}"
        oracle.observe(op, outcome)
        assert machine.audit() == [], f"operation {number} {op}"
