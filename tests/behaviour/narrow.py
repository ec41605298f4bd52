"""Guests without long mode: their tables and registers by name."""

from tests.behaviour.guest import MEMORY, RWU, USED, Guest, GuestMaker, P
from tests.behaviour.machines import AnyMachine

from shadow_mmu.cpu import DEFAULT_CPU, CpuModel
from shadow_mmu.types import OpFlag, OpKind, OutcomeCode

USER = int(OpFlag.USER)
POLICIES = ["locked", "seed", "lru:3"]
CR0, CR0_OFF = 0x80050033, 0x00050033
PAE, PGE, SMEP, SMAP = 0x20, 1 << 7, 1 << 20, 1 << 21
LME, NXE = 0x100, 0x800
DATA = 0x400000


def narrow(
    guest: GuestMaker, policy: str, cr4: int, *, vcpus: int = 1, memory: int = MEMORY, cpu: CpuModel = DEFAULT_CPU
) -> Guest[AnyMachine]:
    """Return a guest without long mode; its CR3 leads to a frame of zeroes."""
    one = guest.bare(policy, vcpus=vcpus, memory=memory, cpu=cpu)
    for vcpu in range(vcpus):
        one.vcpu = vcpu
        one.host_cr(OpKind.WRITE_CR4, cr4)
        one.host_cr(OpKind.WRITE_EFER, NXE)
    one.vcpu = 0
    return one


def pae_root(one: Guest[AnyMachine], *directories: int) -> int:
    """Return a page of PDPTRs that lead to these page directories."""
    root = one.table()
    for gib, directory in enumerate(directories):
        one.poke(root + 8 * gib, directory | P if directory else 0)
    return root


def pae_map(one: Guest[AnyMachine], directory: int, gva: int, gpa: int, bits: int = USED) -> int:
    """Map a page below a page directory of PAE and return the gpa of its entry."""
    at = directory + (gva >> 21 & 511) * 8
    if not one.peek(at) & P:
        one.poke(at, one.table() | RWU)
    entry = (one.peek(at) & ~0xFFF) + (gva >> 12 & 511) * 8
    one.poke(entry, gpa | bits)
    return entry


def set32(one: Guest[AnyMachine], gpa: int, entry: int) -> None:
    """Hypervisor-side write of a 4-byte entry."""
    one.machine.memory.write(gpa, entry.to_bytes(4, "little"))


def get32(one: Guest[AnyMachine], gpa: int) -> int:
    """Hypervisor-side read of a 4-byte entry."""
    return int.from_bytes(one.machine.memory.read(gpa, 4), "little")


def map32(one: Guest[AnyMachine], root: int, gva: int, gpa: int, bits: int = USED) -> int:
    """Map a page of 32-bit paging and return the gpa of its entry."""
    at = root + (gva >> 22) * 4
    if not get32(one, at) & P:
        set32(one, at, one.table() | RWU)
    entry = (get32(one, at) & ~0xFFF) + (gva >> 12 & 1023) * 4
    set32(one, entry, gpa | bits)
    return entry


def reached(gpa: int) -> tuple[OutcomeCode, int, int]:
    return OutcomeCode.OK, gpa, 0
