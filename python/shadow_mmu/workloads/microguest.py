"""The tiny guest whose event streams were recorded on a real KVM shadow MMU: its tables and what it does, as operations.

4 MiB of RAM, one slot at gpa 0. Table set k (0..3) at b = 0x100000 + k * 0x10000: PML4 A at b, PML4 B at b + 0x1000, PDPTs at
b + 0x2000 and + 0x3000, page directories at + 0x4000 and + 0x5000, page tables at + 0x6000 and + 0x7000; every entry has P, W
and U. A's page table maps the first 2 MiB one to one, B's only the first 32 pages. The code is at 0x1000.

One iteration is MOV CR3 B, MOV CR3 A; with ``edit`` also: read A's entry for gva 0x180000, XOR it with 0x1000, write it back,
INVLPG 0x180000, read gva 0x180000. An instruction fetch follows each CR3 write, as it does on a processor.
"""

from typing import Final

from shadow_mmu.errors import ConfigError
from shadow_mmu.ops import Op, access, invlpg, load, store, write_cr0, write_cr3, write_cr4, write_efer
from shadow_mmu.workloads.address_space import Image

MEMORY: Final = 4 << 20
CODE: Final = 0x1000
EDITED: Final = 0x180000
_PWU: Final = 7
_CR0, _CR4, _EFER = 0x80010033, 0x20, 0x500
_TABLE_SETS: Final = 4
_B_PAGES: Final = 32


def table_set(k: int) -> int:
    """Return the gpa of table set ``k``, which is also the CR3 of its address space A.

    Raises
    ------
    ConfigError
        There is no such set.

    """
    if not 0 <= k < _TABLE_SETS:
        raise ConfigError(f"table set {k}: expected 0..{_TABLE_SETS - 1}")
    return 0x100000 + k * 0x10000


def image() -> Image:
    """Return the guest's memory at the start."""
    memory = Image(MEMORY)

    def put(gpa: int, entry: int) -> None:
        memory.write(gpa, entry.to_bytes(8, "little"))

    for base in map(table_set, range(_TABLE_SETS)):
        for side in range(2):
            top, pdpt, directory, table = (base + level * 0x2000 + side * 0x1000 for level in range(4))
            put(top, pdpt | _PWU)
            put(pdpt, directory | _PWU)
            put(directory, table | _PWU)
            for page in range(512 if side == 0 else _B_PAGES):
                put(table + 8 * page, page << 12 | _PWU)
    return memory


def program_of(iterations: int, *, edit: bool = False, vcpu: int = 0, tables: int = 0) -> list[Op]:
    """Return what one vCPU does, from its start in address space A.

    Parameters
    ----------
    iterations : int
        Round trips A, B, A.
    edit : bool
        Whether each iteration edits a page-table entry (scenario ``ptewrite1``) or not (``pingpong1``).
    vcpu : int
        Which vCPU.
    tables : int
        Which table set.

    """
    base = table_set(tables)
    slot = base + 0x6000 + 8 * (EDITED >> 12)

    def switch(cr3: int) -> list[Op]:
        return [write_cr3(cr3, vcpu=vcpu), access(CODE, "fetch", vcpu=vcpu, expect=CODE)]

    operations = [
        write_cr0(_CR0, vcpu=vcpu, host=True),
        write_cr4(_CR4, vcpu=vcpu, host=True),
        write_efer(_EFER, vcpu=vcpu, host=True),
        *switch(base),
    ]
    entry = EDITED | _PWU
    for _ in range(iterations):
        operations += switch(base + 0x1000) + switch(base)
        if edit:
            entry ^= 0x1000
            operations += [
                load(slot, vcpu=vcpu),
                store(slot, entry, vcpu=vcpu),
                invlpg(EDITED, vcpu=vcpu),
                access(EDITED, "read", vcpu=vcpu, expect=entry & ~0xFFF),
            ]
    return operations
