"""A translation explained: each level's table, entry, flags and accumulated rights, in one dimension or two.

:mod:`.guest` walks a guest's own tables, of whatever mode, over anything that can be read like memory: a dump or a machine.
:mod:`.shadow` decodes the way through a machine's shadow tables, :mod:`.verdict` compares the two, :mod:`.access` says what they
mean for an access, and :mod:`.live` puts them together. :mod:`.tables` draws.
"""

from .types import (
    AccessAnswer,
    EntryKind,
    PageWalk,
    Rights,
    ShadowStep,
    TlbEntry,
    Verdict,
    WalkDimension,
    WalkStep,
    size_name,
)

__all__ = [
    "AccessAnswer",
    "EntryKind",
    "PageWalk",
    "Rights",
    "ShadowStep",
    "TlbEntry",
    "Verdict",
    "WalkDimension",
    "WalkStep",
    "size_name",
]
