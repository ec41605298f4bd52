"""Random operations: after each, every invariant holds and the outcome is legal (E046, E162, D.5)."""

import pytest
from tests.model.workload import MEMORY, operations

from shadow_mmu.model import LegalTranslations, Machine

POLICIES = ["locked", "seed", "lru:0", "lru:1", "lru:3", "lru:16"]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("seed", "tlb_entries"), [(1, 1536), (2, 0), (3, 5), (4, 24)])
def test_e162_invariants_and_legal_outcomes_under_random_operations(policy: str, seed: int, tlb_entries: int) -> None:
    machine = Machine([(0, MEMORY)], 2, policy, tlb_entries)
    oracle = LegalTranslations([(0, MEMORY)], 2)
    for number, op in enumerate(operations(seed, 800)):
        outcome = machine.execute(op)
        complaint = oracle.judge(op, outcome)
        assert complaint is None, f"operation {number} {op}: {outcome}: {complaint}"
        oracle.observe(op, outcome)
        assert machine.audit() == [], f"operation {number} {op}"


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_operations_give_the_same_state_words_and_trace(policy: str) -> None:
    results = []
    for _ in range(2):
        machine = Machine([(0, MEMORY)], 2, policy, trace=True)
        outcomes = [machine.execute(op) for op in operations(7, 500)]
        results.append((outcomes, machine.state_words(), machine.take_trace()))
    assert results[0] == results[1]
    assert len(results[0][2]) % 24 == 0
    assert results[0][2]


@pytest.mark.parametrize("seed", range(3))
def test_all_policies_give_the_same_guest_visible_memory(seed: int) -> None:
    """Without stale translations in play (each store followed by a flush) the policy is invisible to the guest."""
    memories = set()
    for policy in POLICIES:
        machine = Machine([(0, MEMORY)], 1, policy, tlb_entries=0)
        for op in operations(seed, 300, 1):
            if op.kind == 2 and (op.addr >> 63 or op.addr >> 12 >= 4):
                continue  # policies differ there by design
            machine.execute(op)
            machine.execute(op._replace(kind=2, flags=0, addr=machine.vm.vcpus[0].registers.cr3))
        memories.add(machine.memory.read(0, MEMORY))
    assert len(memories) == 1
