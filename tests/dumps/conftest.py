"""The shipped dumps, unpacked once a session, with what QEMU said of them."""

import json
import lzma
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shadow_mmu import open_dump
from shadow_mmu.dumps import Maps

DATA = Path(__file__).parent / "data"

Open = Callable[..., Maps]


@dataclass(frozen=True)
class RealDump:
    """One guest: its dump in two formats, `info tlb`, and the facts of the JSON file."""

    name: str
    elf: Path
    lime: Path
    info_tlb: tuple[tuple[int, int, str], ...]
    facts: dict[str, Any]

    @property
    def levels(self) -> int:
        """Return the levels of its tables."""
        return int(self.facts["cpus"][0]["levels"])


def unpacked(name: str) -> bytes:
    return lzma.decompress((DATA / f"{name}.xz").read_bytes())


def _tlb_line(line: str) -> tuple[int, int, str]:
    gva, gpa, flags = line.replace(":", " ").split()
    return int(gva, 16), int(gpa, 16), flags


@pytest.fixture(scope="session", params=["la48", "la57"])
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RealDump:
    """Each of the two guests."""
    name = f"qemu_kpti_{request.param}"
    folder = tmp_path_factory.mktemp(name)
    paths = {}
    for form in ("elf", "lime"):
        paths[form] = folder / f"{name}.ptonly.{form}"
        paths[form].write_bytes(unpacked(paths[form].name))
    lines = unpacked(f"{name}.info_tlb.txt").decode().splitlines()
    facts = json.loads((DATA / f"{name}.json").read_text())
    return RealDump(name, paths["elf"], paths["lime"], tuple(map(_tlb_line, lines)), facts)


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """Return a function that writes bytes to a file, opens it as a dump and lists its maps."""

    def use(data: bytes, **arguments: int) -> Maps:
        path = tmp_path / "dump"
        path.write_bytes(data)
        with open_dump(path) as dump:
            return dump.maps(**arguments)  # type: ignore[arg-type]

    return use
