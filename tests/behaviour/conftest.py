"""Every test of behaviour runs on both implementations: the reference model and the compiled core."""

from typing import Any

import pytest
from tests.behaviour import machines
from tests.behaviour.guest import GuestMaker


@pytest.fixture(params=["model", "native"])
def guest(request: pytest.FixtureRequest) -> GuestMaker:
    """Make guests on the implementation under test."""
    kind: Any = request.param
    if kind == "model":
        return GuestMaker(machines.model)
    from shadow_mmu import _native

    return GuestMaker(machines.native(_native))
