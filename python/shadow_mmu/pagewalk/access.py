"""What the guest's tables say to an access: allowed, or which fault, at which level and by which bit (B.2, B.5)."""

from typing import Final, NamedTuple

from shadow_mmu.checks import shown
from shadow_mmu.errors import ConfigError
from shadow_mmu.model.constants import (
    FETCH,
    FLAG_AC,
    FLAG_IMPLICIT,
    FLAG_USER,
    PF_F,
    PF_P,
    PF_PK,
    PF_RSVD,
    READ,
    WRITE,
)
from shadow_mmu.model.permissions import Access, Context, access_code, is_denied, key_denies, key_of, make_access

from .guest import PDPTR
from .types import AccessAnswer, EntryKind, Rights, WalkDimension, WalkStep

__all__ = ["KINDS", "Asked", "answer", "ask", "leaf_key", "rights_in_words"]

KINDS: Final = {"read": READ, "write": WRITE, "fetch": FETCH}


class Asked(NamedTuple):
    """An access that somebody asks about."""

    access: Access
    words: str


def ask(kind: object, *, user: bool = False, ac: bool = False, implicit: bool = False) -> Asked:
    """Return the access of a kind.

    Raises
    ------
    ConfigError
        There is no such kind.

    """
    if not isinstance(kind, str) or kind not in KINDS:
        raise ConfigError(f"kind is {shown(kind)}: expected 'read', 'write' or 'fetch'")
    flags = (FLAG_USER if user else 0) | (FLAG_AC if ac else 0) | (FLAG_IMPLICIT if implicit else 0)
    words = [
        "user" if user else "supervisor",
        *(["implicit"] if implicit else []),
        kind,
        *(["with EFLAGS.AC"] if ac else []),
    ]
    return Asked(make_access(KINDS[kind], flags), " ".join(words))


def leaf_key(context: Context, walk: WalkDimension) -> int:
    """Return the protection key of the page that a walk reaches; 0 where there is none."""
    return key_of(context, walk.steps[-1].entry) if walk.end is EntryKind.PAGE and walk.steps else 0


def rights_in_words(context: Context, rights: Rights, key: int = 0) -> str:
    """Return who may do what in this mode, over entries that give these rights to a page with this protection key.

    >>> from shadow_mmu.cpu import CpuModel
    >>> from shadow_mmu.model.permissions import make_context
    >>> from shadow_mmu.model.registers import Registers
    >>> rights_in_words(make_context(Registers(), CpuModel()), Rights(writable=False, executable=True, user=True))
    'a user may read and fetch; a supervisor may read and fetch'
    """
    return (
        f"a user may {_may(context, rights, key, user=True)}; a supervisor may {_may(context, rights, key, user=False)}"
    )


def _may(context: Context, rights: Rights, key: int, *, user: bool) -> str:
    allowed, with_ac = [], []
    for name in KINDS:
        plain, overriding = (
            not is_denied(context, rights.access, one) and not key_denies(context, rights.access, key, one)
            for one in (ask(name, user=user, ac=ac).access for ac in (False, True))
        )
        if plain:
            allowed.append(name)
        elif overriding:
            with_ac.append(name)
    parts = [_listed(allowed)] if allowed else []
    if with_ac:
        parts.append(f"with EFLAGS.AC {_listed(with_ac)}")
    return ", and ".join(parts) or "do nothing"


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def answer(context: Context, guest: WalkDimension, asked: Asked, *, in_memory: bool, read_only: bool) -> AccessAnswer:
    """Say what comes of an access by the guest's tables as they are now.

    Parameters
    ----------
    context : Context
    guest : WalkDimension
        The walk of its address.
    asked : Asked
    in_memory : bool
        Whether a memslot has the page that the walk reaches.
    read_only : bool
        Whether the guest may only read it (E107).

    """
    access = asked.access
    # F is reported only where the processor defines it (B.2 step 1).
    code = access_code(access) & ~(0 if context.nx or context.smep else PF_F)
    last = guest.steps[-1] if guest.steps else None
    if guest.end is EntryKind.NON_CANONICAL:
        return AccessAnswer(asked.words, "#GP", None, str(guest.end))
    if guest.address is None or guest.rights is None:
        assert last is not None, "a walk without a step reaches its page"
        reserved = guest.end is EntryKind.RESERVED
        return AccessAnswer(
            asked.words,
            "#PF",
            code | (PF_P | PF_RSVD if reserved else 0),
            f"{_where([last])}: {_missing(context, last)}",
        )
    key = leaf_key(context, guest)
    if key_denies(context, guest.rights.access, key, access):
        bit = "access" if context.pkru >> 2 * key & 1 else "write"
        return AccessAnswer(
            asked.words, "#PF", code | PF_P | PF_PK, f"PKRU has {bit}-disable for key {key} of the page"
        )
    if is_denied(context, guest.rights.access, access):
        return AccessAnswer(asked.words, "#PF", code | PF_P, _refusal(context, guest, access))
    why = "" if in_memory else ", in no memslot"
    if access.write and read_only:
        why = ", in a read-only memslot"
    return AccessAnswer(asked.words, "MMIO" if why else "allowed", None, f"gpa {guest.address:#x}{why}")


def _missing(context: Context, step: WalkStep) -> str:
    """Say why a step leads nowhere."""
    if step.kind is not EntryKind.RESERVED or step.name == PDPTR:
        return str(step.kind)
    bits = step.entry & context.reserved[step.level][step.entry >> 7 & 1]
    return "reserved " + ", ".join(f"bit {bit}" for bit in range(64) if bits >> bit & 1) + " set"


def _refusal(context: Context, guest: WalkDimension, access: Access) -> str:
    """Name the bit that refuses an access, and the levels that have it so. The order is that of B.5."""
    assert guest.rights is not None
    rights = guest.rights
    if access.write and not rights.writable and (access.user or context.wp):
        return f"{_where(_without(guest, 'W'))}: W is clear" + ("" if access.user else ", and CR0.WP is set")
    if access.fetch and not rights.executable and context.nx:
        return f"{_where([step for step in guest.steps if 'NX' in step.flags])}: NX is set"
    if access.user:
        return f"{_where(_without(guest, 'U'))}: U is clear"
    rule = "CR4.SMEP" if access.fetch else "CR4.SMAP"
    return f"U is set at every level: {rule} keeps a supervisor out"


def _without(guest: WalkDimension, flag: str) -> list[WalkStep]:
    """Return the steps whose entry lacks a right; a PDPTR gives none."""
    return [step for step in guest.steps if step.name != PDPTR and flag not in step.flags]


def _where(steps: list[WalkStep]) -> str:
    return "level " + " and ".join(f"{step.level} ({step.name})" for step in steps)
