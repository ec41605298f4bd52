"""What a stress run is made of, and its JSON form."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Self

from shadow_mmu import _native
from shadow_mmu.checks import whole
from shadow_mmu.config import parse_size
from shadow_mmu.errors import ConfigError
from shadow_mmu.policy import Policy
from shadow_mmu.types import PAGE_SIZE

__all__ = ["StressPlan"]

_MAX: Final = (1 << 64) - 1
_MAX_SECONDS: Final = 1_000_000.0
DEFAULT_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class StressPlan:
    """One stress run.

    Attributes
    ----------
    vcpus : int
        Each a thread of its own; 1 to 256.
    policy : Policy
    seconds : float or None
        How long.
    steps : int or None
        Instead: how many steps of each vCPU, a few operations each.
    seed : int
        Of what each vCPU does. How they meet on threads is not a function of it.
    memory : int
        Bytes of guest memory; 0 is what the vCPUs need.
    audit_every : int
        Steps of vCPU 0 between two audits with every vCPU at rest; 0: only at the end.
    turns : bool
        All vCPUs on one thread, the next one drawn from the seed: the same every time. Takes ``steps``.
    lock_times : bool
        Measure how long the mmu_lock is held; more than 50 ms is a violation.
    patience : float
        Seconds without a step after which a vCPU is reported as stuck.
    keep_going : bool
        Go on after a violation.
    rates : tuple of (str, int)
        How often each action is taken, relative to the others, where that is not the default.

    Raises
    ------
    ConfigError
        A value is out of its range, there is no such rate, or the memory is not enough for the vCPUs.

    """

    vcpus: int = 2
    policy: Policy = Policy.lru()  # noqa: RUF009  frozen
    seconds: float | None = None
    steps: int | None = None
    seed: int = 0
    memory: int = 0
    audit_every: int = 20_000
    turns: bool = False
    lock_times: bool = True
    patience: float = 5.0
    keep_going: bool = False
    rates: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        policy: object = self.policy
        if not isinstance(policy, Policy):
            put("policy", Policy.parse(policy))
        self.policy.require_long_mode("the guest of the stress")
        put("vcpus", whole("vcpus", self.vcpus, 1, _native.MAX_STRESS_VCPUS))
        for name in ("seed", "audit_every"):
            put(name, whole(name, getattr(self, name), 0, _MAX))
        if self.seconds is not None and self.steps is not None:
            raise ConfigError(f"seconds is {self.seconds!r} and steps is {self.steps!r}: expected one of them")
        if self.steps is not None:
            put("steps", whole("steps", self.steps, 1, _MAX))
        elif self.turns:
            raise ConfigError("a run in turns is the same every time: expected steps, not seconds")
        else:
            put("seconds", _positive("seconds", DEFAULT_SECONDS if self.seconds is None else self.seconds))
        put("patience", _positive("patience", self.patience))
        put("memory", self._enough_memory())
        put("rates", self._checked_rates())

    def _enough_memory(self) -> int:
        memory: object = self.memory
        size = parse_size(memory) if isinstance(memory, str) else whole("memory", memory, 0, 1 << 46)
        needed = _native.stress_bytes(self.vcpus)
        size = size or needed
        if size % PAGE_SIZE:
            raise ConfigError(f"memory is {size:,} bytes: expected a multiple of {PAGE_SIZE:,}")
        if size < needed:
            fits = max((n for n in range(1, self.vcpus) if _native.stress_bytes(n) <= size), default=0)
            raise ConfigError(
                f"{self.vcpus} vCPUs need {needed:,} bytes of memory, got {size:,}: expected at most {fits} vCPUs or more memory"
            )
        return size

    def _checked_rates(self) -> tuple[tuple[str, int], ...]:
        given: object = self.rates.items() if isinstance(self.rates, Mapping) else self.rates
        try:
            rates = {str(name): rate for name, rate in given}  # type: ignore[attr-defined]  # what is no pairs is told
        except (TypeError, ValueError) as error:
            raise ConfigError(f"rates is {self.rates!r}: expected pairs of a name and a whole number") from error
        for name, rate in rates.items():
            if name not in _native.STRESS_RATES:
                raise ConfigError(f"no rate {name!r}: expected {', '.join(_native.STRESS_RATES)}")
            rates[name] = whole(f"rate {name}", rate, 1 if name == "access" else 0, 1_000_000)
        return tuple(sorted(rates.items()))

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**found, "policy": str(self.policy), "rates": dict(self.rates)}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        """Read the JSON form.

        Raises
        ------
        ConfigError
            It is not the form of a plan.

        """
        names = [field.name for field in fields(cls)]
        if sorted(found) != sorted(names):
            raise ConfigError(f"a plan has {', '.join(names)}: got {', '.join(map(str, found)) or 'nothing'}")
        for name in ("turns", "lock_times", "keep_going"):
            if not isinstance(found[name], bool):
                raise ConfigError(f"{name} is {found[name]!r}: expected true or false")
        return cls(**found)


def _positive(name: str, value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
        if math.isfinite(number) and 0 < number <= _MAX_SECONDS:
            return number
    raise ConfigError(f"{name} is {value!r}: expected more than 0 and at most {_MAX_SECONDS:,.0f} seconds")
