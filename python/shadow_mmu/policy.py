"""The policies: how many previous roots a vCPU keeps and who pays for the sync (``docs/machine.md`` §3); what the lock is; the order of a link; what the hardware walks."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Self, TypedDict, Unpack, cast, get_args, get_type_hints

from shadow_mmu.cpu import CpuModel
from shadow_mmu.errors import ConfigError, UnsupportedModeError
from shadow_mmu.types import MAX_PREVIOUS_ROOTS

PolicyKind = Literal["locked", "seed", "lru"]
LockKind = Literal["queued", "ticket", "ttas", "mutex", "rwlock"]
LinkOrder = Literal["mark-first", "kvm", "full-sync"]
PaeRoots = Literal["uncached", "cached"]
MmuKind = Literal["shadow", "tdp"]
Host = Literal["64", "pae"]

LOCK_KINDS: Final[tuple[LockKind, ...]] = get_args(LockKind)
LINK_ORDERS: Final[tuple[LinkOrder, ...]] = get_args(LinkOrder)
PAE_ROOTS: Final[tuple[PaeRoots, ...]] = get_args(PaeRoots)
MMU_KINDS: Final[tuple[MmuKind, ...]] = get_args(MmuKind)
HOSTS: Final[tuple[Host, ...]] = get_args(Host)


class PolicyOptions(TypedDict, total=False):
    """What may follow the name of a policy as ``,option=value``: the fields of :class:`Policy` of these names."""

    lock: LockKind
    link: LinkOrder
    pae_roots: PaeRoots
    mmu: MmuKind
    host: Host


# The choices of each option; the first is the default.
_OPTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    name: get_args(choices) for name, choices in get_type_hints(PolicyOptions).items()
}
POLICY_CHOICES: Final = f"'locked', 'seed' or 'lru:N' with N = 0..{MAX_PREVIOUS_ROOTS}"
"""The names of a policy, for people."""
OPTION_CHOICES: Final = ", ".join(f"{name}={'|'.join(choices)}" for name, choices in _OPTIONS.items())
"""Its options with their values, for people."""
_LRU = re.compile(r"lru:(0|[1-9][0-9]*)")


def _listed(choices: tuple[str, ...]) -> str:
    return f"{', '.join(choices[:-1])} or {choices[-1]}"


@dataclass(frozen=True, slots=True)
class Policy:
    """What a CR3 write does with the outgoing root, what kind of lock the mmu_lock is, how an unsync page is linked, what is walked.

    ``locked`` is KVM before the 2018 patch (no previous root, every switch takes the mmu_lock), ``seed`` is that patch
    (one previous root), ``lru:N`` the modern kernel with N previous roots.

    Attributes
    ----------
    kind : {"locked", "seed", "lru"}
    previous : int
        Number of previous roots: 0 for ``locked``, 1 for ``seed``, 0..16 for ``lru``.
    lock : {"queued", "ticket", "ttas", "mutex", "rwlock"}
        ``queued`` (MCS, the kernel's kind) and ``ticket`` are first come, first served; ``ttas`` (test-and-test-and-set)
        is not; ``mutex`` puts waiters to sleep; ``rwlock`` is taken shared by what turns out to have nothing to do
        (``docs/machine.md`` §12). It changes who waits, never what comes out.
    link : {"mark-first", "kvm", "full-sync"}
        The steps by which a page that the guest writes without faults comes under another root (``docs/machine.md`` §13):
        ``mark-first`` marks, syncs, links; ``kvm`` syncs, links, marks, as the upstream code; ``full-sync`` write-protects
        and syncs it for good, then links it.
    pae_roots : {"uncached", "cached"}
        What a switch does with the root of a 32-bit or PAE guest, which is four entries: ``uncached`` frees it, as KVM, so that
        each switch takes the mmu_lock (E017); ``cached`` keeps it among the previous roots of ``seed`` and ``lru:N`` like any
        other (``docs/machine.md`` §14).
    mmu : {"shadow", "tdp"}
        What the hardware walks: ``shadow`` tables made from the guest's, or with ``tdp`` the guest's own tables and, for each
        address in them, direct ones (two-dimensional paging, ``docs/machine.md`` §15). No guest table is shadowed then.
    host : {"64", "pae"}
        ``pae`` is a host of 32 bits: the shadow has three levels at most, and no vCPU has long mode (``docs/machine.md`` §17). It does not go with ``mmu=tdp``.

    Raises
    ------
    ConfigError
        The parts do not go together, or an option has no such value.

    """

    kind: PolicyKind
    previous: int
    lock: LockKind = "queued"
    link: LinkOrder = "mark-first"
    pae_roots: PaeRoots = "uncached"
    mmu: MmuKind = "shadow"
    host: Host = "64"

    def __post_init__(self) -> None:
        if type(self.previous) is not int:
            raise ConfigError(f"the number of previous roots must be an integer, not {self.previous!r}")
        allowed = {"locked": range(1), "seed": range(1, 2), "lru": range(MAX_PREVIOUS_ROOTS + 1)}.get(self.kind)
        if allowed is None:
            raise ConfigError(f"no policy {self.kind!r}: expected {POLICY_CHOICES}")
        if self.previous not in allowed:
            raise ConfigError(
                f"policy {self.kind!r} cannot have {self.previous} previous roots: expected {allowed[0]}..{allowed[-1]}"
            )
        for name, choices in _OPTIONS.items():
            value = getattr(self, name)
            if value not in choices:
                raise ConfigError(f"no {name} {value!r}: expected {_listed(choices)}")
        if self.mmu == "tdp" and self.host != "64":
            raise ConfigError(
                f"mmu=tdp on host={self.host}: its tables have four levels, and a host of 32 bits three: "
                "expected host=64, or mmu=shadow"
            )

    @classmethod
    def locked(cls, **options: Unpack[PolicyOptions]) -> Self:
        """KVM before the patch: no cached root."""
        return cls("locked", 0, **options)

    @classmethod
    def seed(cls, **options: Unpack[PolicyOptions]) -> Self:
        """Return the policy of the 2018 patch: one previous root and its tag."""
        return cls("seed", 1, **options)

    @classmethod
    def lru(cls, previous: int = 3, **options: Unpack[PolicyOptions]) -> Self:
        """Return the policy of the modern kernel, which has three previous roots unless told otherwise."""
        return cls("lru", previous, **options)

    @classmethod
    def parse(cls, text: object) -> Self:
        """Read ``NAME[,option=value]...`` where ``NAME`` is ``locked``, ``seed`` or ``lru:N``.

        >>> Policy.parse("lru:3,lock=ticket") == Policy.lru(3, lock="ticket")
        True
        >>> Policy.parse("seed,link=kvm")
        Policy.seed(link='kvm')

        Raises
        ------
        ConfigError
            Anything else, with the text and the valid choices.

        """
        name, *options = text.split(",") if isinstance(text, str) else (text,)
        match = _LRU.fullmatch(name) if isinstance(name, str) else None
        if name == "locked":
            found = cls.locked()
        elif name == "seed":
            found = cls.seed()
        elif match is not None and len(match[1]) <= 2 and int(match[1]) <= MAX_PREVIOUS_ROOTS:
            found = cls.lru(int(match[1]))
        else:
            raise ConfigError(f"no policy {text!r}: expected {POLICY_CHOICES}")
        given: dict[str, Any] = {}
        for option in options:
            key, _, value = option.partition("=")
            if key not in _OPTIONS:
                raise ConfigError(
                    f"no option {option!r} in policy {text!r}: expected {', '.join(_OPTIONS)} with = and a value"
                )
            if key in given:
                raise ConfigError(f"{key!r} is given twice in policy {text!r}: expected it at most once")
            given[key] = value
        return replace(found, **given)

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

    @property
    def name(self) -> str:
        """``locked``, ``seed`` or ``lru:N``: the policy without its options."""
        return f"lru:{self.previous}" if self.kind == "lru" else self.kind

    @property
    def caches_pae_roots(self) -> bool:
        """Whether roots of four entries enter the root cache: where they are to, and there is one."""
        return self.pae_roots == "cached" and self.kind != "locked" and self.mmu == "shadow"

    def processor(self, cpu: CpuModel) -> CpuModel:
        """Return what a vCPU that is to be this processor is on the host: on one of 32 bits it has no long mode."""
        return cpu if self.host == "64" else replace(cpu, long_mode=False, la57=False)

    def require_long_mode(self, what: str) -> None:
        """Refuse a guest that has 4- or 5-level paging where no vCPU has it.

        Raises
        ------
        UnsupportedModeError
            The host has 32 bits.

        """
        if self.host != "64":
            raise UnsupportedModeError(
                f"{what} runs in long mode, and a vCPU of policy {str(self)!r} has none, its host having 32 bits: "
                "expected host=64, or a guest with PAE or 32-bit paging"
            )

    @property
    def options(self) -> PolicyOptions:
        """Every option with its value."""
        return cast("PolicyOptions", {name: getattr(self, name) for name in _OPTIONS})

    def _changed(self) -> dict[str, str]:
        """Return the options that are not as they are unless told otherwise."""
        return {name: getattr(self, name) for name, choices in _OPTIONS.items() if getattr(self, name) != choices[0]}

    def __str__(self) -> str:
        return ",".join((self.name, *(f"{name}={value}" for name, value in self._changed().items())))

    def __repr__(self) -> str:
        arguments = [str(self.previous)] if self.kind == "lru" else []
        arguments += [f"{name}={value!r}" for name, value in self._changed().items()]
        return f"Policy.{self.kind}({', '.join(arguments)})"


def with_locks(policies: Iterable[Policy], locks: Iterable[object]) -> list[Policy]:
    """Return each policy with each kind of lock; the policies as they are where no kind is given.

    Raises
    ------
    ConfigError
        A kind is none or comes twice, or a policy names a lock already.

    """
    given = list(policies)
    kinds: list[LockKind] = []
    for lock in locks:
        kind = next((one for one in LOCK_KINDS if one == lock), None)
        if kind is None:
            raise ConfigError(f"no lock {lock!r}: expected {_listed(LOCK_KINDS)}")
        if kind in kinds:
            raise ConfigError(f"lock {kind!r} is given twice: expected each at most once")
        kinds.append(kind)
    if not kinds:
        return given
    for policy in given:
        if policy.lock != LOCK_KINDS[0]:
            raise ConfigError(
                f"policy {str(policy)!r} names a lock: expected it there or in the list of locks, not both"
            )
    return [replace(policy, lock=kind) for policy in given for kind in kinds]
