"""Models with one planted difference, to see that a comparison finds it."""

from functools import partial

from shadow_mmu.differential import Maker, ModelSubject
from shadow_mmu.model import Machine, Outcome
from shadow_mmu.model.ops import DONE, OpTuple
from shadow_mmu.model.tlb import Tlb
from shadow_mmu.types import OpKind


class IgnoresInvlpg(Machine):
    """INVLPG does nothing."""

    def execute(self, op: OpTuple, pages: object | None = None) -> Outcome:
        """Run one operation."""
        return DONE if op[0] == OpKind.INVLPG else super().execute(op, pages)


class ForgetfulTlb(Tlb):
    """A TLB that keeps a page that it should drop, while told so."""

    keeps = False

    def drop(self, page: int) -> None:
        """Forget one page, or do not."""
        if not self.keeps:
            super().drop(page)


class InvlpgKeepsTlb(Machine):
    """INVLPG does all its work but leaves the translation in the TLB."""

    def execute(self, op: OpTuple, pages: object | None = None) -> Outcome:
        """Run one operation."""
        vcpu = self.vm.vcpus[op[2]]
        if not isinstance(vcpu.tlb, ForgetfulTlb):
            vcpu.tlb = ForgetfulTlb(len(vcpu.tlb.pages))
        vcpu.tlb.keeps = op[0] == OpKind.INVLPG
        return super().execute(op, pages)


def planted(kind: type[Machine]) -> Maker:
    """Return what makes a subject of a model class."""
    return partial(ModelSubject, kind=kind)
