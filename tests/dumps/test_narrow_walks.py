"""Walks of 32-bit and PAE tables in a dump; they are not listed."""

import struct
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.dumps.images import PS, Cpu, P, U, W, flat, small_elf

from shadow_mmu import PageWalk, open_dump
from shadow_mmu.cli import main
from shadow_mmu.pagewalk import EntryKind

RWU = P | W | U


def image32() -> bytes:
    """Return a page directory at 0x1000: a table at 0x2000 for 4 MiB, then a large page above 4 GiB."""
    memory = bytearray(0x4000)
    struct.pack_into("<II", memory, 0x1000, 0x2000 | RWU, 0x80_0000 | 5 << 13 | PS | RWU)
    struct.pack_into("<I", memory, 0x2000 + 4 * 1023, 0x3000 | P)
    return bytes(memory)


def image_pae() -> bytes:
    """Return PDPTRs at 0x1020, the second of which leads to a directory at 0x2000 and a table at 0x3000."""
    words = {0x1020 + 8: 0x2000 | P, 0x1020 + 16: 0x2000 | RWU, 0x2000: 0x3000 | RWU, 0x3000: 1 << 63 | 0x5000 | RWU}
    memory = bytearray(0x4000)
    for gpa, word in words.items():
        struct.pack_into("<Q", memory, gpa, word)
    return bytes(memory)


def walked(path: Path, image: bytes, gva: int, cr3: int, levels: int) -> PageWalk:
    path.write_bytes(image)
    with open_dump(path, format="raw") as dump:
        return dump.walk(gva, cr3, levels=levels)


def test_a_4_byte_entry_and_a_large_page_of_pse_36(tmp_path: Path) -> None:
    walk = walked(tmp_path / "raw", image32(), 0x3FF123, 0x1000, 2)
    assert (walk.guest.mode, walk.guest.address, str(walk.guest.rights)) == ("32-bit", 0x3123, "r-x s")
    assert [(step.name, step.index, step.entry_address) for step in walk.guest.steps] == [
        ("PD", 0, 0x1000),
        ("PT", 1023, 0x2FFC),
    ]
    assert "│ 0x00003001 │" in repr(walk)
    large = walked(tmp_path / "raw", image32(), 0x40_1234, 0x1018, 2)
    assert (large.guest.address, large.guest.page_size) == ((5 << 32) + 0x80_1234, 4 << 20)


def test_pdptrs_are_taken_from_memory(tmp_path: Path) -> None:
    walk = walked(tmp_path / "raw", image_pae(), 0x4000_0123, 0x1020, 3)
    assert (walk.guest.mode, walk.guest.root, walk.guest.address, str(walk.guest.rights)) == (
        "PAE",
        0x1020,
        0x5123,
        "rw- u",
    )
    assert [step.name for step in walk.guest.steps] == ["PDPTR", "PD", "PT"]
    assert walked(tmp_path / "raw", image_pae(), 0, 0x1020, 3).guest.end is EntryKind.NOT_PRESENT
    # W and U are reserved in a PDPTR (B.3).
    assert walked(tmp_path / "raw", image_pae(), 0x8000_0000, 0x1020, 3).guest.end is EntryKind.RESERVED


def test_a_vcpu_without_cr4_pae_has_32_bit_paging(tmp_path: Path) -> None:
    path = tmp_path / "elf"
    image = small_elf()
    image.cpus = [Cpu(cr4=0x690)]
    path.write_bytes(image.build())
    with open_dump(path) as dump:
        assert (dump.cpus[0].levels, dump.page_tables().levels_from) == (2, "CR4")
        assert dump.walk(0x123).guest.mode == "32-bit"


@pytest.mark.parametrize(("levels", "mode"), [("2", "32-bit"), ("3", "PAE")])
def test_the_command_takes_levels_that_a_list_does_not(tmp_path: Path, levels: str, mode: str) -> None:
    path = tmp_path / "raw"
    path.write_bytes(image_pae())
    done = CliRunner().invoke(main, ["walk", str(path), "0x40000123", "--cr3", "0x1020", "--levels", levels])
    assert done.exit_code == 0, done.output
    assert f"the guest's {mode} tables" in done.stdout
    assert CliRunner().invoke(main, ["maps", str(path), "--cr3", "0x1020", "--levels", levels]).exit_code == 2


def test_a_root_that_the_dump_does_not_have_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "raw"
    path.write_bytes(flat({}, 0x1000))
    done = CliRunner().invoke(main, ["walk", str(path), "0", "--cr3", "0x1000", "--levels", "3"])
    assert done.exit_code == 2
    assert "its table at gpa 0x1000 not in the dump" in " ".join(done.stderr.split())
