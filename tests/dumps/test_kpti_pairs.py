"""What is taken for a KPTI pair, and what only looks like one; dumps and ranges as a notebook shows them."""

from pathlib import Path

import pytest
from tests.dumps.images import NX, A, Cpu, ElfImage, Segment, table

from shadow_mmu import MemoryDump, open_dump
from shadow_mmu.dumps import Root

KERNEL, USER = 0x2000, 0x3000
KERNEL_ENTRIES = {0: 0x8007 | NX, 255: 0x9007 | NX, 256: 0xA007, 300: 0xB007, 511: 0xC007}
USER_ENTRIES = {0: 0x8007, 255: 0x9007, 256: 0xD007, 511: 0xC007}


def opened(path: Path, kernel: dict[int, int], user: dict[int, int], *cr3s: int) -> MemoryDump:
    cpus = [Cpu(cr3=cr3) for cr3 in cr3s]
    file = path / "dump"
    file.write_bytes(ElfImage([Segment(KERNEL, table(kernel) + table(user))], cpus).build())
    return open_dump(file)


def test_a_pair_has_the_same_user_tables_and_less_of_the_kernels(tmp_path: Path) -> None:
    with opened(tmp_path, KERNEL_ENTRIES, USER_ENTRIES, KERNEL) as dump:
        assert dump.other_half(KERNEL) == Root(USER, "user", KERNEL, ())
        assert dump.other_half(USER) == Root(KERNEL, "kernel", USER, ())


@pytest.mark.parametrize(
    ("kernel", "user"),
    [
        (KERNEL_ENTRIES, {}),  # the page beside it is no table
        (KERNEL_ENTRIES, KERNEL_ENTRIES),  # a copy: nothing of the kernel is hidden
        (KERNEL_ENTRIES, {**USER_ENTRIES, 0: 0xE007}),  # other user tables
        (KERNEL_ENTRIES, {**USER_ENTRIES, 7: 0xE007}),  # more user tables
        (KERNEL_ENTRIES, {256: 0xD007}),  # no user tables
        (KERNEL_ENTRIES, {0: 0x8007, 255: 0x9007}),  # no way into the kernel
        (KERNEL_ENTRIES, {**USER_ENTRIES, 400: 0xE007}),  # something of the kernel that the kernel has not
        (USER_ENTRIES, KERNEL_ENTRIES),  # the wrong way round
    ],
)
def test_tables_beside_each_other_are_no_pair_by_that_alone(
    tmp_path: Path, kernel: dict[int, int], user: dict[int, int]
) -> None:
    with opened(tmp_path, kernel, user, KERNEL) as dump:
        assert dump.other_half(KERNEL) is None
        assert dump.other_half(USER) is None
        assert dump.roots == (Root(KERNEL, None, None, (0,)),)


def test_accessed_bits_and_a_kernel_thread_without_user_tables_do_not_hide_a_pair(tmp_path: Path) -> None:
    with opened(tmp_path, {**KERNEL_ENTRIES, 0: 0x8007 | NX | A}, USER_ENTRIES, KERNEL) as dump:
        assert dump.other_half(KERNEL) is not None
    with opened(tmp_path, {256: 0xA007, 300: 0xB007}, {256: 0xD007}, KERNEL) as dump:
        assert dump.other_half(KERNEL) is not None


def test_a_half_that_is_not_in_the_dump_makes_no_pair(tmp_path: Path) -> None:
    file = tmp_path / "dump"
    file.write_bytes(ElfImage([Segment(KERNEL, table(KERNEL_ENTRIES))], [Cpu(cr3=KERNEL)]).build())
    with open_dump(file) as dump:
        assert dump.other_half(KERNEL) is None


def test_roots_name_the_vcpus_that_have_them(tmp_path: Path) -> None:
    with opened(tmp_path, KERNEL_ENTRIES, USER_ENTRIES, USER | 0x801, KERNEL, USER | 0x801, KERNEL | 1) as dump:
        assert dump.roots == (
            Root(USER | 0x801, "user", KERNEL, (0, 2)),
            Root(KERNEL, "kernel", USER, (1, 3)),
        )


def test_a_notebook_shows_roots_and_ranges(tmp_path: Path) -> None:
    with opened(tmp_path, KERNEL_ENTRIES, USER_ENTRIES, KERNEL) as dump:
        html = dump._repr_html_()
        for text in ("<td>0x2000</td><td>0</td><td>kernel half of 0x3000</td>", "<td>0x4000</td><td>8 KiB</td>"):
            assert text in html
        assert f"&lt;MemoryDump {tmp_path}/dump: elf, 8,192 bytes in 1 ranges, 1 vCPUs&gt;" in html


def test_a_long_list_is_cut_for_a_glance_and_says_so(tmp_path: Path) -> None:
    file = tmp_path / "memory.raw"
    pages = [table({0: 0x1007}), table({0: 0x2007}), table({0: 0x3007}), table(dict.fromkeys(range(0, 100, 2), 0x3007))]
    file.write_bytes(b"".join(pages))
    with open_dump(file) as dump:
        maps = dump.maps(cr3=0)
    assert len(maps) == 50
    for text in (repr(maps), maps._repr_html_()):
        assert "CR3 0x0, 4 levels: 50 pages (50 of 4 KiB) in 50 ranges, 4 tables read" in text
        assert "10 more ranges" in text
        assert "0x000000000004e000" in text
        assert "0x0000000000050000" not in text
    assert maps._repr_html_().count("<tr>") == 41
