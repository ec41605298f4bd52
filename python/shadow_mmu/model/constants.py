"""Numbers that the machine fixes: bits, limits, requests, counters (``docs/machine.md`` §1, §2, §6, §11).

Plain integers, not enums: the walks compare and mask them a million times in a replay.
"""

from typing import Final

from shadow_mmu.types import OpFlag, OpKind

WORD: Final = (1 << 64) - 1
PAGE_SHIFT: Final = 12
PAGE_SIZE: Final = 1 << PAGE_SHIFT
PAGE_OFFSET: Final = PAGE_SIZE - 1
HOST_PIECE: Final = 1 << 20  # bytes that one acquisition of the mmu_lock writes on behalf of the host
ENTRIES: Final = 512
INDEX: Final = ENTRIES - 1
PFN_MASK: Final = ((1 << 52) - 1) & ~PAGE_OFFSET
"""The physical address field of a 64-bit entry: bits 51:12 (B.1)."""

RAM_BASE_PFN: Final = 1 << 34
"""Host frame of guest frame 0: not 0, so that a gfn used as a pfn shows."""
SHADOW_BASE_PFN: Final = 1 << 36
"""Host frame of shadow page 0."""
DUMMY_ROOT: Final = (SHADOW_BASE_PFN - 1) << PAGE_SHIFT
"""The all-zero root of a guest whose CR3 is outside memory (E016)."""
PAE_ROOT: Final = (SHADOW_BASE_PFN - 2) << PAGE_SHIFT
PAE_TABLES: Final = 17
"""The root of a guest without long mode: no shadow page but four entries, each of which leads to one (E043)."""
INVALID_ROOT: Final = WORD

FLOODING_LIMIT: Final = 3
SYNC_BATCH: Final = 16
RMAP_RECYCLE: Final = 1000

# ACC bits (C.1).
ACC_X: Final = 1
ACC_W: Final = 2
ACC_U: Final = 4
ACC_ALL: Final = 7

# Page-fault error code (B.2).
PF_P: Final = 1
PF_W: Final = 2
PF_U: Final = 4
PF_RSVD: Final = 8
PF_F: Final = 16
PF_PK: Final = 32

# Guest page-table entries (B.1).
GPTE_P: Final = 1
GPTE_W: Final = 1 << 1
GPTE_U: Final = 1 << 2
GPTE_A: Final = 1 << 5
GPTE_D: Final = 1 << 6
GPTE_PS: Final = 1 << 7
GPTE_NX: Final = 1 << 63
KEY_SHIFT: Final = 59
"""Bits 62:59 of a leaf are its protection key, if the processor has keys (SDM 3A, 4.6.2)."""
KEY_MASK: Final = 15

# Control registers.
CR0_PE: Final = 1
CR0_ET: Final = 1 << 4
CR0_WP: Final = 1 << 16
CR0_NW: Final = 1 << 29
CR0_CD: Final = 1 << 30
CR0_PG: Final = 1 << 31
CR3_BIT63: Final = 1 << 63
CR4_PSE: Final = 1 << 4
CR4_PAE: Final = 1 << 5
CR4_PGE: Final = 1 << 7
CR4_LA57: Final = 1 << 12
CR4_SMEP: Final = 1 << 20
CR4_SMAP: Final = 1 << 21
CR4_PKE: Final = 1 << 22
CR0_PDPTR_BITS: Final = CR0_PG | CR0_CD | CR0_NW
CR4_COMMON: Final[int] = sum(1 << bit for bit in (*range(12), 16, 18))
"""What every processor has: VME to OSXMMEXCPT, UMIP, FSGSBASE, OSXSAVE."""
CR4_ROLE_BITS: Final = CR4_PSE | CR4_PAE | CR4_LA57 | CR4_SMEP | CR4_SMAP | CR4_PKE
CR4_PDPTR_BITS: Final = CR4_PGE | CR4_PSE | CR4_PAE | CR4_SMEP
"""A change of one of these (and of CR0_PDPTR_BITS) loads the PDPTRs anew under PAE paging (B.3)."""
EFER_SCE: Final = 1
EFER_LME: Final = 1 << 8
EFER_LMA: Final = 1 << 10
EFER_NXE: Final = 1 << 11
EFER_COMMON: Final = EFER_SCE

# Requests, lowest first in the order of service (§6).
REQ_FREE_OBSOLETE_ROOTS: Final = 1
REQ_MMU_SYNC: Final = 2
REQ_LOAD_MMU_PGD: Final = 4
REQ_TLB_FLUSH: Final = 8
REQ_TLB_FLUSH_CURRENT: Final = 16
REQ_TLB_FLUSH_GUEST: Final = 32
REQ_TRIPLE_FAULT: Final = 64

COUNTERS: Final = (
    "pf_taken",
    "pf_fixed",
    "pf_emulate",
    "pf_spurious",
    "pf_guest",
    "mmio_exits",
    "tlb_flush",
    "invlpg",
    "mmu_shadow_zapped",
    "mmu_pte_write",
    "mmu_pde_zapped",
    "mmu_flooded",
    "mmu_recycled",
    "mmu_cache_miss",
    "mmu_unsync",
    "remote_tlb_flush",
    "remote_tlb_flush_requests",
)
LOCK_REASONS: Final = ("load", "free", "sync", "fault", "pte_write", "invlpg", "zap", "host", "audit")

# Trace events (§11).
EVENT_GET_PAGE: Final = 1
EVENT_UNSYNC_PAGE: Final = 2
EVENT_SYNC_PAGE: Final = 3
EVENT_PREPARE_ZAP_PAGE: Final = 4
EVENT_SET_SPTE: Final = 5

# Operation kinds and flags as plain integers (§2).
NOP: Final = int(OpKind.NOP)
WRITE_CR0: Final = int(OpKind.WRITE_CR0)
WRITE_CR3: Final = int(OpKind.WRITE_CR3)
WRITE_CR4: Final = int(OpKind.WRITE_CR4)
WRITE_EFER: Final = int(OpKind.WRITE_EFER)
INVLPG: Final = int(OpKind.INVLPG)
READ: Final = int(OpKind.READ)
WRITE: Final = int(OpKind.WRITE)
FETCH: Final = int(OpKind.FETCH)
LOAD: Final = int(OpKind.LOAD)
STORE: Final = int(OpKind.STORE)
HOST_STORE: Final = int(OpKind.HOST_STORE)
HOST_PAGE: Final = int(OpKind.HOST_PAGE)
SYNC_TLB: Final = int(OpKind.SYNC_TLB)
WORK: Final = int(OpKind.WORK)
# Most nanoseconds of one WORK, so that a stop is never far.
MAX_WORK: Final = 100_000_000
ZAP_GFN: Final = int(OpKind.ZAP_GFN)
WRITE_PKRU: Final = int(OpKind.WRITE_PKRU)
FLAG_USER: Final = int(OpFlag.USER)
FLAG_AC: Final = int(OpFlag.AC)
FLAG_IMPLICIT: Final = int(OpFlag.IMPLICIT)
FLAG_HOST: Final = int(OpFlag.HOST)
KNOWN_FLAGS: Final = 63
ACCESS_FLAGS: Final = FLAG_USER | FLAG_AC | FLAG_IMPLICIT
