"""The guest of the behaviour tests on a model whose inside can be looked at."""

from tests.behaviour.guest import CACHING, MEMORY, NX, PAGE, POLICIES, PS, RWU, USED, A, D, P, U, W, with_roots
from tests.behaviour.guest import Guest as AnyGuest

from shadow_mmu.cpu import DEFAULT_CPU, CpuModel
from shadow_mmu.model import Machine

__all__ = ["CACHING", "NX", "PAGE", "POLICIES", "PS", "RWU", "USED", "A", "D", "Guest", "P", "U", "W", "guest", "visit"]


class Guest(AnyGuest[Machine]):
    """A model and the guest in it."""

    def __init__(
        self,
        policy: str = "lru:3",
        vcpus: int = 1,
        memory: int = MEMORY,
        *,
        cpu: CpuModel = DEFAULT_CPU,
        tlb_entries: int = 1536,
        trace: bool = False,
    ) -> None:
        machine = Machine([(0, memory)], vcpus, policy, tlb_entries, cpu, trace=trace)
        super().__init__(machine, vcpus, tlb_entries)


def guest(
    policy: str, roots: int = 2, *, vcpus: int = 1, tlb_entries: int = 1536, trace: bool = False
) -> tuple[Guest, list[int]]:
    """Return a guest with so many roots, each mapping ``PAGE`` to a frame of its own, and none entered yet."""
    one = Guest(policy, vcpus, tlb_entries=tlb_entries, trace=trace)
    return one, with_roots(one, roots)


def visit(one: Guest, *roots: int) -> None:
    """Switch to each root in turn and fetch there."""
    one.visit(*roots)
