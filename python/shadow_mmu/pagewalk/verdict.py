"""Guest and shadow beside each other: whether they agree, and if not, whether that is what a TLB is allowed to keep (D.5)."""

from typing import Final

from shadow_mmu.model import constants as c
from shadow_mmu.model.permissions import Context

from .access import leaf_key
from .shadow import ShadowPath
from .types import EntryKind, Rights, ShadowStep, TlbEntry, Verdict, WalkDimension, WalkStep

__all__ = [
    "compare",
    "compare_direct",
    "direct_words",
    "may_decide_otherwise",
    "pending_words",
    "tlb_words",
    "verdict_words",
]

_REQUESTS: Final = tuple(
    (getattr(c, f"REQ_{name}"), name)
    for name in (
        "FREE_OBSOLETE_ROOTS",
        "MMU_SYNC",
        "LOAD_MMU_PGD",
        "TLB_FLUSH",
        "TLB_FLUSH_CURRENT",
        "TLB_FLUSH_GUEST",
        "TRIPLE_FAULT",
    )
)
_CONVERTED: Final = "CR0.WP is clear, so a supervisor's write was given W and took U: a user exits, and CR4.SMAP, if set, finds no U to refuse"
_FLUSHES: Final = c.REQ_TLB_FLUSH | c.REQ_TLB_FLUSH_CURRENT | c.REQ_TLB_FLUSH_GUEST


def compare(context: Context, guest: WalkDimension, shadow: WalkDimension, *, in_memory: bool) -> Verdict:
    """Say how two dimensions compare.

    Parameters
    ----------
    context : Context
    guest, shadow : WalkDimension
        Of the same address.
    in_memory : bool
        Whether a memslot has the page that the guest's walk reaches.

    """
    if guest.rights is None:
        return Verdict.UNMAPPED if shadow.rights is None else Verdict.STALE
    if shadow.rights is None:
        return Verdict.MISSING if in_memory else Verdict.MMIO
    if guest.address != shadow.address or leaf_key(context, guest) != leaf_key(context, shadow):
        return Verdict.STALE
    legal = _rights_of_a_leaf(context, guest.rights)
    if shadow.rights in legal:
        return Verdict.AGREE
    # To a supervisor under SMEP or SMAP a page without U is open that is closed with it.
    opened = (context.smep or context.smap) and guest.rights.user and not shadow.rights.user
    narrower = any(not shadow.rights.access & ~one.access for one in legal)
    return Verdict.NARROWER if narrower and not opened else Verdict.STALE


def compare_direct(guest: WalkDimension, direct: WalkDimension | None, *, in_memory: bool) -> Verdict:
    """Say how they compare where the direct tables only have to map the gpa that the guest's walk reaches."""
    if direct is None:
        return Verdict.UNMAPPED
    if direct.address is None:
        return Verdict.MISSING if in_memory else Verdict.MMIO
    return Verdict.AGREE if direct.address == guest.address else Verdict.STALE


def direct_words(verdict: Verdict, missing: list[WalkStep], read_only: list[WalkStep]) -> list[str]:
    """Return a verdict of two dimensions for people.

    ``missing`` are the guest's tables that have no direct entry yet, ``read_only`` its entries in which A and D may not be set (E107).
    """
    unmarked = [step for step in read_only if "A" not in step.flags]
    clean = [step for step in read_only if step.kind is EntryKind.PAGE and "D" not in step.flags]
    text = {
        Verdict.UNMAPPED: "the guest's tables map nothing: the fault is the guest's own, and no exit",
        Verdict.MISSING: "the direct tables do not map the page yet: the next access exits, and the fault makes the entry",
        Verdict.MMIO: "the gpa is in no memslot: an access is an MMIO exit, and nothing is mapped",
        Verdict.AGREE: "the direct tables map the page: the hardware gets there by itself",
        Verdict.STALE: "the direct tables lead to another gpa, which they never should",
    }[verdict]
    if unmarked and verdict is not Verdict.MMIO:
        text = "the hardware may not set A in a read-only table: each access exits and is made for the guest, and no entry comes of it"
    words = [text]
    if missing:
        words.append(f"guest tables that are not mapped directly yet, an exit each: {_places(missing)}")
    if unmarked:
        words.append(f"read-only tables whose entry has A clear: {_places(unmarked)}")
    elif clean:
        words.append(f"D is clear in a read-only table, {_places(clean)}: each write exits and is made for the guest")
    return words


def _places(steps: list[WalkStep]) -> str:
    return ", ".join(f"{step.table:#x} (level {step.level})" for step in steps)


def _rights_of_a_leaf(context: Context, rights: Rights) -> set[Rights]:
    """Return what a leaf can have that is made from these rights.

    W may be missing: before the first write, or because the frame holds a guest table. A supervisor's write under CR0.WP=0 gives W
    and takes U, and X under SMEP (B.5).
    """
    found = {rights, Rights(writable=False, executable=rights.executable, user=rights.user)}
    if context.top and not context.wp and not rights.writable:
        found.add(Rights(writable=True, executable=rights.executable and not context.smep, user=False))
    return found


def may_decide_otherwise(verdict: Verdict, guest: WalkDimension, shadow: WalkDimension) -> bool:
    """Whether the hardware may let through what the guest's tables refuse: by a stale entry, or by one without U under CR0.WP=0."""
    if guest.rights is None or shadow.rights is None:
        return verdict is Verdict.STALE
    return verdict is Verdict.STALE or (shadow.rights.writable and not guest.rights.writable)


def verdict_words(verdict: Verdict, guest: WalkDimension, shadow: WalkDimension, *, read_only: bool) -> str:
    """Return a verdict for people; ``read_only``: the guest may only read the page."""
    if verdict is Verdict.STALE:
        return f"stale: the shadow still leads to {shadow.result}; the guest's tables now say {guest.result}. {_why(shadow)}"
    if verdict is Verdict.NARROWER:
        return f"same page, but the shadow gives {shadow.rights} where the guest's tables give {guest.rights}: an access that needs more exits first"
    if verdict is Verdict.AGREE:
        text = "guest and shadow agree"
        if guest.rights == shadow.rights or guest.rights is None or shadow.rights is None:
            return text
        if shadow.rights.writable:
            return f"{text}: {_CONVERTED}"
        if read_only:
            return f"{text}, but for W, which no page of a read-only memslot has"
        return f"{text}, but for W: a write exits, to set D and be given W, or to be emulated if the frame holds a guest table"
    return {
        Verdict.UNMAPPED: "neither guest nor shadow maps the address",
        Verdict.MISSING: f"the shadow has no entry yet ({shadow.result}): the next access exits, and the fault makes it",
        Verdict.MMIO: "the gpa is in no memslot: an access is an MMIO exit, and nothing is shadowed",
    }[verdict]


def _why(shadow: WalkDimension) -> str:
    unsync = [step for step in shadow.steps if isinstance(step, ShadowStep) and step.unsync]
    if not unsync:
        return "No page on the way is unsync."
    pages = " and ".join(f"{step.page} (level {step.level}, gfn {step.gfn:#x})" for step in unsync)
    return f"Legal: shadow page {pages} is unsync, until an INVLPG or a CR3 write brings it up to date."


def tlb_words(entry: TlbEntry | None, tables: WalkDimension, requests: int) -> str:
    """Say what the TLB has of a page, beside the tables that fill it."""
    if entry is None:
        return "the TLB has no entry"
    text = f"the TLB has {entry.address:#x}, {entry.rights}"
    if entry.agrees:
        text += f", as the {tables.name} tables"
    elif tables.end is EntryKind.PAGE:
        text += f", and the {tables.name} tables say otherwise"
    else:
        text += f", and the {tables.name} tables no longer have it"
    return text + (": it is dropped before the next access" if requests & _FLUSHES else "")


def pending_words(path: ShadowPath) -> list[str]:
    """Say what happens before the vCPU's next access."""
    if path.shut_down:
        return ["the vCPU took a triple fault and is shut down: no access gets anywhere"]
    names = [name for bit, name in _REQUESTS if path.requests & bit]
    return [f"serviced before the next access: {', '.join(names)}"] if names else []
