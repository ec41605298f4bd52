"""Looks at translations in every mode: core and model agree, one at a time and together, change nothing, and say what an
access comes to once the TLB and the shadow tables have nothing old."""

from random import Random
from typing import Any

import numpy as np
import pytest
from tests.differential.excuses import shadow_may_give_more

from shadow_mmu import GeneralProtection, GuestEvent, PageFault, Translations
from shadow_mmu.differential import ModelSubject, NativeSubject
from shadow_mmu.ops import Op
from shadow_mmu.policy import Policy
from shadow_mmu.types import AccessKind, OpFlag, OpKind, OutcomeCode
from shadow_mmu.workloads.random import random_stream
from shadow_mmu.workloads.world import PAGINGS, World

OPERATIONS = 900
SOAK_OPERATIONS = 60_000
EVERY = 30
LOOKS = 170  # enough for a batch (FEW in paging/look.rs), whose last walks wait in part of its places
KINDS: dict[AccessKind, OpKind] = {"read": OpKind.READ, "write": OpKind.WRITE, "fetch": OpKind.FETCH}
SHUT_DOWN = int(OutcomeCode.TRIPLE_FAULT)


class Both:
    """The two machines of one stream."""

    def __init__(self, seed: int, operations: int, paging: str) -> None:
        self.stream = random_stream(seed, operations, paging=paging)
        self.core, self.model = NativeSubject(self.stream.config), ModelSubject(self.stream.config)
        self.pages = np.array(self.stream.pages, "<u8").reshape(-1, 512)
        self.world = World(paging, self.stream.config.cpu)
        self.rng = Random(seed)  # noqa: S311  reproducible
        self.seen: set[int] = set()
        self.accesses = 0

    def execute(self, op: Op) -> Any:  # noqa: ANN401  what the stream's subjects return
        found = self.core.execute(op, self.pages)
        assert self.model.execute(op, self.pages) == found
        return found

    def state(self) -> tuple[bytes, bytes]:
        """Everything that a look must leave as it is, memory included."""
        words = self.core.state_words() + repr(self.core.vm.stats()).encode()
        memory = b"".join(self.core.vm.memory_read(gpa, length) for gpa, length, _ in self.stream.config.slots)
        assert self.model.state_words() == self.core.state_words()
        return words, memory

    def addresses(self) -> list[int]:
        def one() -> int:
            gva = self.world.gva(self.rng) + self.rng.randrange(4096)
            return self.rng.choice((gva, gva, gva, gva, gva ^ 1 << self.rng.randrange(64), self.rng.getrandbits(64)))

        return [one() for _ in range(LOOKS)]

    def look(self) -> None:
        """Look on a vCPU with one kind of access, by all three ways."""
        vcpu, kind = self.rng.randrange(self.stream.config.vcpus), self.rng.choice(tuple(KINDS))
        flags = self.rng.randrange(8)
        user, ac, implicit = (bool(flags & flag) for flag in (OpFlag.USER, OpFlag.AC, OpFlag.IMPLICIT))
        gvas, cpu = self.addresses(), self.core.vm.vcpus[vcpu]
        before = self.state()
        many = cpu.translate_many(np.array(gvas, np.uint64), kind, user=user, ac=ac, implicit=implicit)
        wanted = self.model.machine.translate_many(vcpu, gvas, KINDS[kind], flags)
        assert list(zip(many.gpa.tolist(), many.error.tolist(), strict=True)) == wanted
        for gva, (gpa, error) in zip(gvas, wanted, strict=True):
            outcome = self.model.machine.translate(vcpu, gva, KINDS[kind], flags)
            fault: GuestEvent | None = None
            try:
                assert cpu.translate(gva, kind, user=user, ac=ac, implicit=implicit) == gpa
            except GuestEvent as event:
                fault = event
            if outcome.code == OutcomeCode.PAGE_FAULT:
                assert isinstance(fault, PageFault)
                assert (fault.address, fault.error_code, error) == (outcome.value, outcome.error, outcome.error)
            else:
                assert isinstance(fault, GeneralProtection) == (error == Translations.NOT_CANONICAL)
        assert self.state() == before
        self.seen.update(error for _, error in wanted)
        self.compare_with_accesses(vcpu, kind, flags, gvas)

    def compare_with_accesses(self, vcpu: int, kind: AccessKind, flags: int, gvas: list[int]) -> None:
        """A CR3 write drops what TLB and shadow tables have of earlier tables: accesses after it see what the look saw."""
        if self.execute(Op(OpKind.WRITE_CR3, 0, vcpu, addr=self.core.vm.vcpus[vcpu].cr3))[0] != OutcomeCode.OK:
            return  # the PDPTRs in memory have a reserved bit by now
        # A new look: the PDPTRs may be others now.
        looks = self.core.vm.vcpus[vcpu].translate_many(gvas, kind, **_named(flags))
        for gva, gpa, error in zip(gvas, looks.gpa.tolist(), looks.error.tolist(), strict=True):
            code, value, fault = self.execute(Op(KINDS[kind], flags, vcpu, addr=gva))
            if code == SHUT_DOWN:
                return  # the root is in no memslot, and the vCPU with it
            if code == OutcomeCode.OK and error > 0 and self._may_differ(vcpu, error):
                continue
            if code in (OutcomeCode.OK, OutcomeCode.MMIO):
                assert (gpa, error) == (value, Translations.TRANSLATED), hex(gva)
            else:
                wanted = Translations.NOT_CANONICAL if code == OutcomeCode.GP else fault
                assert (gpa, error) == (Translations.NO_GPA, wanted), hex(gva)
            self.accesses += 1

    def _may_differ(self, vcpu: int, error: int) -> bool:
        config, cpu = self.stream.config, self.core.vm.vcpus[vcpu]
        shadowed = Policy.parse(config.policy).mmu == "shadow"
        return shadowed and shadow_may_give_more(config.cpu, cpu.cr0, cpu.cr4, cpu.efer, error)


def _named(flags: int) -> dict[str, bool]:
    return {"user": bool(flags & 1), "ac": bool(flags & 2), "implicit": bool(flags & 4)}


def compare(paging: str, seeds: range, operations: int) -> set[int]:
    """Run streams with looks in them; return the errors that were seen."""
    seen: set[int] = set()
    for seed in seeds:
        both = Both(seed, operations, paging)
        for number, op in enumerate(both.stream.ops):
            both.execute(op)
            if number % EVERY == 0:
                both.look()
        assert both.core.audit() == []
        assert both.accesses > LOOKS
        seen |= both.seen
    return seen


@pytest.mark.parametrize("paging", sorted(PAGINGS))
def test_looks_of_core_and_model_agree_and_foretell_the_next_access(paging: str) -> None:
    seen = compare(paging, range(3), OPERATIONS)
    assert {Translations.TRANSLATED, 0, 5, 7} <= seen
    # Every stream is in long mode now and then.
    assert Translations.NOT_CANONICAL in seen


@pytest.mark.soak
@pytest.mark.parametrize("paging", sorted(PAGINGS))
def test_looks_agree_over_long_streams(paging: str) -> None:
    compare(paging, range(100, 104), SOAK_OPERATIONS)
