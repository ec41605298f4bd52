"""A look at a translation: what the guest's tables say now, with every check of an access (``docs/machine.md`` §16).

It takes the steps of a walk that write nothing, and so leaves the machine as it was. TLB and shadow tables are not looked at:
what they still have of earlier tables an access may use, a look does not. KVM: ``KVM_TRANSLATE``.
"""

from typing import Final

from .access import effective_address, is_canonical
from .constants import PAGE_OFFSET, PAGE_SHIFT
from .ops import GENERAL_PROTECTION, GP, OK, PAGE_FAULT, Outcome
from .permissions import make_access
from .registers import PagingMode
from .vcpu import Vcpu
from .vm import SharedState
from .walk import descend

TRANSLATED: Final = -1
NOT_CANONICAL: Final = -2
NO_GPA: Final = (1 << 64) - 1


def translate(vm: SharedState, vcpu: Vcpu, gva: int, kind: int, flags: int) -> Outcome:
    """Return the gpa, whether or not a memslot has it, or how the access would fault."""
    gva = effective_address(vcpu, gva)
    if not is_canonical(vcpu, gva):
        return GENERAL_PROTECTION
    if vcpu.context.mode is PagingMode.NONE:
        return Outcome(OK, gva)
    found = descend(vm.memory, vcpu.context, vcpu.first_table(gva), gva, make_access(kind, flags))
    if isinstance(found, int):
        return Outcome(PAGE_FAULT, gva, found)
    return Outcome(OK, found.gfn << PAGE_SHIFT | gva & PAGE_OFFSET)


def as_numbers(outcome: Outcome) -> tuple[int, int]:
    """Return gpa and error of a translation, as arrays of many have them."""
    if outcome.code == OK:
        return outcome.value, TRANSLATED
    return NO_GPA, NOT_CANONICAL if outcome.code == GP else outcome.error
