"""The root-cache policies: how many previous roots a vCPU keeps and who pays for the sync (``docs/machine.md`` §3)."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Self

from shadow_mmu.errors import ConfigError
from shadow_mmu.types import MAX_PREVIOUS_ROOTS

PolicyKind = Literal["locked", "seed", "lru"]

_CHOICES = f"'locked', 'seed' or 'lru:N' with N = 0..{MAX_PREVIOUS_ROOTS}"
_LRU = re.compile(r"lru:(0|[1-9][0-9]*)")


@dataclass(frozen=True, slots=True)
class Policy:
    """What a CR3 write does with the outgoing root.

    ``locked`` is KVM before the 2018 patch (no previous root, every switch takes the mmu_lock), ``seed`` is that patch
    (one previous root), ``lru:N`` the modern kernel with N previous roots.

    Attributes
    ----------
    kind : {"locked", "seed", "lru"}
    previous : int
        Number of previous roots: 0 for ``locked``, 1 for ``seed``, 0..16 for ``lru``.

    Raises
    ------
    ConfigError
        The two do not go together.

    """

    kind: PolicyKind
    previous: int

    def __post_init__(self) -> None:
        if type(self.previous) is not int:
            raise ConfigError(f"the number of previous roots must be an integer, not {self.previous!r}")
        allowed = {"locked": range(1), "seed": range(1, 2), "lru": range(MAX_PREVIOUS_ROOTS + 1)}.get(self.kind)
        if allowed is None:
            raise ConfigError(f"no policy {self.kind!r}: expected {_CHOICES}")
        if self.previous not in allowed:
            raise ConfigError(
                f"policy {self.kind!r} cannot have {self.previous} previous roots: expected {allowed[0]}..{allowed[-1]}"
            )

    @classmethod
    def locked(cls) -> Self:
        """KVM before the patch: no cached root."""
        return cls("locked", 0)

    @classmethod
    def seed(cls) -> Self:
        """Return the policy of the 2018 patch: one previous root and its tag."""
        return cls("seed", 1)

    @classmethod
    def lru(cls, previous: int = 3) -> Self:
        """Return the policy of the modern kernel, which has three previous roots unless told otherwise."""
        return cls("lru", previous)

    @classmethod
    def parse(cls, text: object) -> Self:
        """Read ``locked``, ``seed`` or ``lru:N``.

        >>> Policy.parse("lru:3") == Policy.lru(3)
        True

        Raises
        ------
        ConfigError
            Anything else, with the text and the valid choices.

        """
        if text == "locked":
            return cls.locked()
        if text == "seed":
            return cls.seed()
        match = _LRU.fullmatch(text) if isinstance(text, str) else None
        if match is None or len(match[1]) > 2 or int(match[1]) > MAX_PREVIOUS_ROOTS:
            raise ConfigError(f"no policy {text!r}: expected {_CHOICES}")
        return cls.lru(int(match[1]))

    @classmethod
    def parse_list(cls, texts: Iterable[object]) -> list[Self]:
        """Read several policies, each at most once.

        Raises
        ------
        ConfigError
            One is malformed or comes twice.

        """
        policies: list[Self] = []
        for text in texts:
            policy = cls.parse(text)
            if policy in policies:
                raise ConfigError(f"policy {str(policy)!r} is given twice: expected each at most once")
            policies.append(policy)
        return policies

    def __str__(self) -> str:
        return f"lru:{self.previous}" if self.kind == "lru" else self.kind

    def __repr__(self) -> str:
        return f"Policy.lru({self.previous})" if self.kind == "lru" else f"Policy.{self.kind}()"
