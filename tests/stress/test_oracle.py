"""The stress in turns, given to the reference model: the core's oracle against the model's, the core against the model."""

import numpy as np
import pytest

from shadow_mmu import _native
from shadow_mmu.differential import ModelSubject, NativeSubject, compare
from shadow_mmu.model import LegalTranslations, Outcome
from shadow_mmu.model.ops import OP_RECORD
from shadow_mmu.ops import Op
from shadow_mmu.stressing.plan import StressPlan
from shadow_mmu.stressing.runner import keywords, machine
from shadow_mmu.types import OpKind
from shadow_mmu.workloads.random import Stream
from shadow_mmu.workloads.world import MachineConfig

STEPS = 120
ACCESSES = (OpKind.READ, OpKind.WRITE, OpKind.FETCH, OpKind.LOAD, OpKind.STORE)
# Where the windows begin: what is reached through them the oracle does not look at, for it never changes.
WINDOWS = 1 << 63


class Run:
    """A recorded run in turns: its plan, its operations with their outcomes, what the core's oracle allowed."""

    def __init__(self, policy: str, seed: int, steps: int = STEPS) -> None:
        self.plan = StressPlan(vcpus=2, policy=policy, steps=steps, seed=seed, turns=True, audit_every=0)  # type: ignore[arg-type]
        found = machine(self.plan, _native).stress(keywords(self.plan))
        assert not found["findings"]
        ops, outcomes, pages, legal = found["record"]
        self.ops = [Op(*fields) for fields in OP_RECORD.iter_unpack(ops)]
        records = np.frombuffer(outcomes, [("code", "u1"), ("pad", "3u1"), ("error", "<u4"), ("value", "<u8")])
        self.outcomes = [Outcome(int(one["code"]), int(one["value"]), int(one["error"])) for one in records]
        self.pages = np.frombuffer(pages, "<u8").reshape(-1, 512)
        self.legal: dict[int, set[int]] = {}
        for index, page in np.frombuffer(legal, "<u8").reshape(-1, 2).tolist():
            self.legal.setdefault(index, set()).add(page)


@pytest.mark.parametrize("policy", ["locked", "seed", "lru:3"])
def test_d5_the_cores_oracle_allows_what_the_models_oracle_allows(policy: str) -> None:
    run = Run(policy, seed=11)
    oracle = LegalTranslations([(0, run.plan.memory)], vcpus=2)
    compared = several = 0
    for index, (op, outcome) in enumerate(zip(run.ops, run.outcomes, strict=True)):
        if op.kind in ACCESSES and op.addr < WINDOWS:
            assert oracle.judge(op, outcome) is None
            if index in run.legal:
                ours = run.legal[index]
                theirs = {gpa & ~0xFFF for gpa in oracle.legal(op.vcpu, op.addr, op.kind, op.flags)}
                # A word that was data between two entries is no entry for the core's oracle; D.5 does not tell the two apart.
                assert ours <= theirs, (index, op)
                compared += 1
                several += len(theirs) > 1
        page = run.pages[op.aux : op.aux + 1] if op.kind == OpKind.HOST_PAGE else None
        oracle.observe(op._replace(aux=0) if page is not None else op, outcome, page)
    assert compared > 300
    assert several > 0


@pytest.mark.parametrize(("policy", "seed"), [("lru:3", 1), ("seed", 2), ("locked", 3)])
def test_core_and_model_agree_on_every_word_of_state_while_stressed(policy: str, seed: int) -> None:
    run = Run(policy, seed)
    config = MachineConfig(policy, vcpus=2, tlb_entries=1536, slots=((0, run.plan.memory, False),))
    # The setup is many pages of the host and one step for all that is compared.
    stream = Stream(config, tuple(run.ops), tuple(map(tuple, run.pages.tolist())))
    assert compare(stream, NativeSubject, ModelSubject, every=97) is None


def test_d5_an_oracle_that_is_not_told_of_an_edit_disagrees() -> None:
    """The comparison can fail: without the edits of one vCPU the model's oracle allows less than was reached."""
    run = Run("lru:3", seed=11)
    oracle = LegalTranslations([(0, run.plan.memory)], vcpus=2)
    wrong = 0
    for op, outcome in zip(run.ops, run.outcomes, strict=True):
        if op.kind in ACCESSES and op.addr < WINDOWS:
            wrong += oracle.judge(op, outcome) is not None
        if op.kind == OpKind.STORE and op.vcpu == 1 and op.addr >= WINDOWS:
            continue
        page = run.pages[op.aux : op.aux + 1] if op.kind == OpKind.HOST_PAGE else None
        oracle.observe(op._replace(aux=0) if page is not None else op, outcome, page)
    assert wrong > 0
