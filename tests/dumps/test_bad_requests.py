"""Requests that a good dump cannot grant: a CR3 outside memory, an argument out of range, a closed or a vanished file."""

import os
from pathlib import Path

import pytest
from tests.dumps.conftest import Open
from tests.dumps.images import PAGE, Cpu, ElfImage, Segment, chain, flat, small_elf, table

from shadow_mmu import DumpError, UnsupportedModeError, open_dump
from shadow_mmu.errors import ClosedError, ConfigError


def test_a_cr3_outside_memory_is_refused(opened: Open) -> None:
    for cr3 in (0x9000, 0x5000, 0, (1 << 52) - PAGE):
        image = small_elf()
        image.cpus = [Cpu(cr3=cr3)]
        with pytest.raises(DumpError, match=f"CR3 {cr3:#x}: its table at gpa {cr3:#x} not in the dump") as refused:
            opened(image.build())
        assert "expected memory in its 1 ranges, 0x1000 to 0x5000" in str(refused.value)
        with pytest.raises(DumpError, match=f"CR3 {cr3:#x}: its table"):
            opened(small_elf().build(), cr3=cr3)


def test_a_root_that_is_not_whole_is_refused(opened: Open) -> None:
    pages = chain(4)
    whole = b"".join(pages[gpa] for gpa in sorted(pages))
    with pytest.raises(DumpError, match="CR3 0x4000: its table"):
        opened(ElfImage([Segment(0x1000, whole[:-1])], [Cpu(cr3=0x4000)]).build())


@pytest.mark.parametrize("bit", [52, 60, 63])
def test_a_cr3_with_a_reserved_bit_is_refused(opened: Open, bit: int) -> None:
    cr3 = 0x1000 | 1 << bit
    image = small_elf()
    image.cpus = [Cpu(cr3=cr3)]
    with pytest.raises(DumpError, match=f"CR3 of vCPU 0: found {cr3:#x}, expected 64 bits, none above 51"):
        opened(image.build())
    with pytest.raises(ConfigError, match=f"CR3 {cr3:#x}: expected 64 bits, none above 51"):
        opened(small_elf().build(), cr3=cr3)


def test_a_cr3_of_more_than_32_bits_under_32_bit_paging_is_the_dumps_own_fault(opened: Open) -> None:
    image = small_elf()
    image.cpus = [Cpu(cr3=0x2_0000_1000, cr4=0x690)]
    with pytest.raises(DumpError, match="CR3 of vCPU 0: found 0x200001000, expected 64 bits, none above 31"):
        opened(image.build())


@pytest.mark.parametrize("bits", [0x18, 0xFFF, 1 << 61, 3 << 61])
def test_pcid_cache_and_lam_bits_of_cr3_are_no_part_of_the_address(opened: Open, bits: int) -> None:
    image = small_elf()
    image.cpus = [Cpu(cr3=0x1000 | bits)]
    assert len(opened(image.build())) == 1


@pytest.mark.parametrize(
    ("registers", "text"),
    [
        ({"cr0": 0x50033}, "expected paging to be on"),
        ({"cr4": 0x690}, "tables of 2 levels: expected 4- or 5-level paging"),
        ({"cr0": 0, "cr4": 0}, "expected paging to be on"),
    ],
)
def test_a_vcpu_in_another_paging_mode_is_refused(opened: Open, registers: dict[str, int], text: str) -> None:
    image = small_elf()
    image.cpus = [Cpu(**registers)]
    with pytest.raises(UnsupportedModeError, match=text):
        opened(image.build())
    assert len(opened(image.build(), levels=4)) == 1


@pytest.mark.parametrize("levels", [2, 3])
def test_tables_of_32_bit_and_pae_paging_are_not_listed(opened: Open, levels: int) -> None:
    with pytest.raises(UnsupportedModeError, match=f"tables of {levels} levels: expected 4- or 5-level paging"):
        opened(small_elf().build(), levels=levels)
    with pytest.raises(ConfigError, match=r"CR3 0x100001000: expected 64 bits, none above 31"):
        opened(small_elf().build(), levels=levels, cr3=0x1_0000_1000)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"cpu": 1}, "no vCPU 1: expected 0 to 0"),
        ({"cpu": -1}, "no vCPU -1: expected 0 to 0"),
        ({"cpu": 0, "cr3": 0x1000}, "cr3 0x1000 and cpu 0: expected one of the two"),
        ({"levels": 1}, "levels 1: expected 4 or 5"),
        ({"levels": 6}, "levels 6: expected 4 or 5"),
        ({"cr3": -1}, "CR3 -0x1: expected 64 bits"),
        ({"cr3": 1 << 64}, "expected 64 bits"),
        ({"limit": 0}, "limit 0: expected a positive number of pages"),
    ],
)
def test_an_argument_out_of_its_range_is_refused(opened: Open, arguments: dict[str, int], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        opened(small_elf().build(), **arguments)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    for path, text in (
        (tmp_path / "absent", "cannot be opened \\(No such file or directory\\)"),
        (tmp_path, "is no regular file"),
        (fifo, "is no regular file"),
        ("a\0b", "cannot be opened \\(embedded null byte\\)"),
    ):
        with pytest.raises(DumpError, match=text):
            open_dump(path)
    with pytest.raises(ConfigError, match="dump format 'vmss': expected 'elf', 'lime' or 'raw'"):
        open_dump(fifo, format="vmss")  # type: ignore[arg-type]


def test_a_format_that_the_file_has_not_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    path.write_bytes(flat({0x1000: table({})}, 0x2000))
    with pytest.raises(DumpError, match="no ELF file: found b''"):
        open_dump(path, format="elf")
    with pytest.raises(DumpError, match="no LiME range"):
        open_dump(path, format="lime")


def test_a_closed_dump_is_a_closed_error(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    path.write_bytes(small_elf().build())
    with open_dump(path) as dump:
        tables = dump.page_tables()
    dump.close()
    for use in (tables.leaves, lambda: tables.walk(0), lambda: dump.memory.read(0x1000, 8), lambda: dump.roots):
        with pytest.raises(ClosedError, match="the dump is closed"):
            use()


def test_a_file_cut_short_while_it_is_open_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    path.write_bytes(small_elf().build())
    with open_dump(path) as dump:
        os.truncate(path, path.stat().st_size - PAGE)
        with pytest.raises(DumpError, match="memory at gpa 0x4000 is gone: the file was cut short while it was open"):
            dump.maps()


@pytest.mark.parametrize(("gpa", "length"), [(0, 1), (0xFFF, 2), (0x4FFF, 2), (0x5000, 1), (-1, 1), (0x1000, -1), (1 << 64, 8), (0x1000, 1 << 62)])  # fmt: skip
def test_memory_outside_the_dump_cannot_be_read(tmp_path: Path, gpa: int, length: int) -> None:
    path = tmp_path / "dump"
    path.write_bytes(small_elf().build())
    with open_dump(path) as dump:
        assert len(dump.memory.read(0x1FFF, 0x2002)) == 0x2002
        with pytest.raises(DumpError, match="not in the dump"):
            dump.memory.read(gpa, length)


@pytest.mark.parametrize("gva", [-1, 1 << 64])
def test_a_gva_that_is_no_64_bit_number_is_refused(tmp_path: Path, gva: int) -> None:
    path = tmp_path / "dump"
    path.write_bytes(small_elf().build())
    with open_dump(path) as dump, pytest.raises(ConfigError, match="gva"):
        dump.walk(gva)
