"""What all tests share: hypothesis profiles, the shipped recording, a maker of small recordings."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from shadow_mmu.recording import Recording, load_recording

ROOT = Path(__file__).parent.parent

# Machines are slow to make beside a rule of a state machine, and a shared CI machine stops now and then.
_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("dev", max_examples=30, deadline=None, suppress_health_check=_SLOW)
settings.register_profile("ci", max_examples=100, deadline=None, suppress_health_check=_SLOW, derandomize=True)
settings.register_profile("soak", max_examples=5000, deadline=None, suppress_health_check=_SLOW)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


@pytest.fixture(scope="session")
def kpti_path() -> Path:
    """Where the shipped recording is."""
    return ROOT / "recordings" / "linux61-4level-kpti-small.npz"


@pytest.fixture(scope="session")
def kpti(kpti_path: Path) -> Recording:
    """The shipped recording: Linux 6.1 with KPTI, 4 levels, 2 vCPUs."""
    return load_recording(kpti_path)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes hours unless it is asked for with ``-m``."""
    if config.option.markexpr:
        return
    soak = [item for item in items if item.get_closest_marker("soak")]
    if soak:
        config.hook.pytest_deselected(items=soak)
        items[:] = [item for item in items if item not in soak]
