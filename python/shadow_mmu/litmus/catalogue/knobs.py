"""The knobs of a litmus test: the order of each access, the order of each fence, each possible mistake.

Their names say what they are: ``O_x`` the order of an access, ``F_x`` a fence, ``MUT_x`` and other words a switch, all else a
number. A setting is written as in the tables: ``O_SPTE=RLX F_PUB=F_REL MUT_NO_WAIT``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from shadow_mmu.errors import ConfigError
from shadow_mmu.litmus.order import ACQ, F_NONE, REL, Fence, Order
from shadow_mmu.litmus.program import Await, FenceOp, Program, Store, fence, lock, unlock

__all__ = ["LOCK_KNOBS", "Case", "Knob", "Knobs", "Litmus", "textbook"]

Knob = Order | Fence | bool | tuple[int, ...]
"""The default of a knob; for a number the values that it may have, the default last."""

LOCK_KNOBS: Final[Mapping[str, Knob]] = {"O_LOCK": ACQ, "O_UNLOCK": REL}


@dataclass(frozen=True, slots=True)
class Case:
    """One setting worth knowing: the knobs that differ from the defaults, and what that means."""

    setting: str
    title: str


@dataclass(frozen=True, slots=True)
class Knobs:
    """The knobs of a test as they are set; reading one that is not declared is a mistake of the test."""

    orders: Mapping[str, Order] = field(default_factory=dict)
    fences: Mapping[str, Fence] = field(default_factory=dict)
    switches: Mapping[str, bool] = field(default_factory=dict)
    numbers: Mapping[str, int] = field(default_factory=dict)

    def order(self, name: str) -> Order:
        """Return the order of an access."""
        return self.orders[name]

    def fence(self, name: str) -> FenceOp | None:
        """Return a fence, ``None`` if it is switched off."""
        return None if self.fences[name] is F_NONE else fence(self.fences[name])

    def on(self, name: str) -> bool:
        """Whether a mistake is switched on."""
        return self.switches[name]

    def number(self, name: str) -> int:
        """Return a number."""
        return self.numbers[name]

    def lock(self) -> Await:
        """Return the acquisition of the mmu_lock."""
        return lock(order=self.orders["O_LOCK"])

    def unlock(self) -> Store:
        """Return the release of the mmu_lock."""
        return unlock(order=self.orders["O_UNLOCK"])


@dataclass(frozen=True, slots=True)
class Litmus:
    """A litmus test: a program that depends on knobs, and the settings of them that are known.

    Attributes
    ----------
    name, short : str
        Its name and a shorter one (``p1_publish3``, ``P1``).
    family : str
        ``protocol`` or ``textbook``.
    title, forbids : str
        What it is about; the outcome that must not happen.
    knobs : dict
        The knobs and their defaults.
    cases : tuple of Case
        The first is the default setting.
    build : callable
        Makes the program.

    """

    name: str
    short: str
    family: str
    title: str
    forbids: str
    knobs: Mapping[str, Knob]
    cases: tuple[Case, ...]
    build: Callable[[Knobs], Program]

    @property
    def weakenings(self) -> tuple[str, ...]:
        """The settings of the cases other than the default."""
        return tuple(case.setting for case in self.cases if case.setting)

    def program(self, setting: str = "") -> Program:
        """Return the program under a setting: one of the cases or any other combination of knobs.

        Raises
        ------
        ConfigError
            A knob that the test does not have, or a value that the knob cannot take.

        """
        chosen: dict[str, Order | Fence | int | bool] = {
            name: default[-1] if isinstance(default, tuple) else default for name, default in self.knobs.items()
        }
        given: set[str] = set()
        for word in setting.split():
            name, _, text = word.partition("=")
            if name not in self.knobs:
                raise ConfigError(f"{self.name} has no knob {name!r}: {self.choices()}")
            if name in given:
                raise ConfigError(f"{self.name}: knob {name!r} is set twice in {setting!r}")
            given.add(name)
            chosen[name] = self._value(name, text)
        return self.build(
            Knobs(
                orders={name: one for name, one in chosen.items() if isinstance(one, Order)},
                fences={name: one for name, one in chosen.items() if isinstance(one, Fence)},
                switches={name: one for name, one in chosen.items() if isinstance(one, bool)},
                numbers={name: one for name, one in chosen.items() if type(one) is int},
            )
        )

    def title_of(self, setting: str) -> str:
        """Return what a setting means: the title of its case, or the setting itself if it is none of them."""
        words = sorted(setting.split())
        return next((case.title for case in self.cases if sorted(case.setting.split()) == words), setting)

    def choices_by_knob(self) -> dict[str, list[str]]:
        """Return what each knob may be set to, the default first; a switch has the values off and 1."""
        return {name: [_shown(default), *_others(default)] for name, default in self.knobs.items()}

    def choices(self) -> str:
        """Return the weakenings and knobs in words, for an error."""
        knobs = ", ".join(
            name if isinstance(default, bool) else f"{name}={'|'.join(_values(default))}"
            for name, default in self.knobs.items()
        )
        named = ", ".join(f"'{setting}'" for setting in self.weakenings) or "none"
        return f"its weakenings are {named}; its knobs are {knobs or 'none'}"

    def _value(self, name: str, text: str) -> Order | Fence | int | bool:
        default = self.knobs[name]
        if isinstance(default, bool):
            if text not in {"", "1"}:
                raise ConfigError(f"{self.name}: {name} is a switch, not {name}={text}: {self.choices()}")
            return True
        if text not in _values(default):
            raise ConfigError(f"{self.name}: {name} cannot be {text!r}: {self.choices()}")
        if isinstance(default, tuple):
            return int(text)
        return Fence(text) if isinstance(default, Fence) else Order(text)


def _values(default: Knob) -> tuple[str, ...]:
    """Return what a knob that is no switch may be set to."""
    if isinstance(default, tuple):
        return tuple(map(str, sorted(default)))
    if isinstance(default, Fence):
        return tuple(one.value for one in Fence)
    return tuple(one.value for one in Order if one is not Order.NA)


def _shown(default: Knob) -> str:
    if isinstance(default, bool):
        return "off"
    return str(default[-1]) if isinstance(default, tuple) else default.value


def _others(default: Knob) -> list[str]:
    if isinstance(default, bool):
        return ["1"]
    return [one for one in _values(default) if one != _shown(default)]


def textbook(
    name: str,
    title: str,
    forbids: str,
    knobs: Mapping[str, Knob],
    cases: tuple[Case, ...],
    *,
    build: Callable[[Knobs], Program],
) -> Litmus:
    """Return a test of the textbooks, which has one name only."""
    return Litmus(name, name, "textbook", title, forbids, knobs, cases, build)
