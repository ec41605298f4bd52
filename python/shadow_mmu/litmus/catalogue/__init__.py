"""The catalogue: the lock-free protocols of the shadow MMU, P1 to P12, and the tests of the textbooks."""

from typing import Final

from shadow_mmu.errors import ConfigError
from shadow_mmu.litmus.catalogue import message_passing, per_location, store_buffering
from shadow_mmu.litmus.catalogue.account import ACCOUNT
from shadow_mmu.litmus.catalogue.clean import CLEAN
from shadow_mmu.litmus.catalogue.cycle import CYCLE
from shadow_mmu.litmus.catalogue.dirty import DIRTY, FASTPF
from shadow_mmu.litmus.catalogue.invalidate import INVALIDATE
from shadow_mmu.litmus.catalogue.knobs import Case, Knobs, Litmus
from shadow_mmu.litmus.catalogue.lifetime import LOCK, REFCOUNT
from shadow_mmu.litmus.catalogue.link import LINK
from shadow_mmu.litmus.catalogue.publish import PUBLISH2, PUBLISH3, SKIP
from shadow_mmu.litmus.catalogue.quiesce import QUIESCE
from shadow_mmu.litmus.catalogue.request import REQUEST
from shadow_mmu.litmus.catalogue.walk import WALK

__all__ = ["CATALOGUE", "Case", "Knobs", "Litmus", "find"]

_PROTOCOLS: Final = (
    PUBLISH3, PUBLISH2, SKIP, ACCOUNT, QUIESCE, CLEAN, REQUEST, WALK, INVALIDATE, FASTPF, DIRTY, LOCK, REFCOUNT, CYCLE, LINK,
)  # fmt: skip

_TEXTBOOK: Final = (*message_passing.TESTS, *store_buffering.TESTS, *per_location.TESTS)

CATALOGUE: Final[dict[str, Litmus]] = {test.name: test for test in (*_PROTOCOLS, *_TEXTBOOK)}
"""All litmus tests by name."""


def find(name: str) -> Litmus:
    """Return the test of a name or short name; case does not matter.

    Raises
    ------
    ConfigError
        There is no such test.

    """
    wanted = name.lower()
    for test in CATALOGUE.values():
        if wanted in {test.name.lower(), test.short.lower()}:
            return test
    raise ConfigError(f"no litmus test {name!r}: expected one of {', '.join(CATALOGUE)}")
