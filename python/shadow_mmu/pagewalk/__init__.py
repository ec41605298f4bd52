"""A translation explained: each level's table, entry, flags and accumulated rights, in one dimension or two.

:mod:`.guest` walks a guest's own tables, of whatever mode, over anything that can be read like memory: a dump or a machine.
"""

from .types import EntryKind, PageWalk, Rights, WalkDimension, WalkStep, size_name

__all__ = ["EntryKind", "PageWalk", "Rights", "WalkDimension", "WalkStep", "size_name"]
