"""Dumps that are cut short, lie, or belong to another machine: a typed error that says where and what, and no more memory."""

import os
import struct
from pathlib import Path

import pytest
from tests.dumps.conftest import Open
from tests.dumps.images import (
    PAGE,
    PT_NOTE,
    Cpu,
    ElfImage,
    Segment,
    chain,
    flat,
    lime_range,
    note,
    qemu_state,
    small_elf,
    table,
)

from shadow_mmu import DumpError, open_dump
from shadow_mmu.errors import ConfigError


def small_lime() -> bytes:
    pages = chain(4)
    return lime_range(0x1000, pages[0x1000] + pages[0x2000]) + lime_range(0x3000, pages[0x3000] + pages[0x4000])


def test_the_small_dumps_are_good(opened: Open) -> None:
    for levels in (4, 5):
        assert len(opened(small_elf(levels).build())) == 1
    assert len(opened(small_lime(), cr3=0x1000)) == 1
    assert len(opened(flat(chain(4), 0x5000), cr3=0x1000)) == 1


@pytest.mark.parametrize("form", ["elf", "lime"])
def test_a_dump_cut_short_at_any_byte_is_refused(tmp_path: Path, form: str) -> None:
    first, second = table({0: 0x2007}), bytes(range(16))
    elf = ElfImage([Segment(0x1000, first), Segment(0x9000, second)]).build()
    whole = elf if form == "elf" else lime_range(0x1000, first) + lime_range(0x9000, second)
    path = tmp_path / "cut"
    path.write_bytes(whole)
    with open_dump(path) as dump:
        assert dump.memory.size == PAGE + 16
    for size in range(len(whole) - 1, -1, -1):
        os.truncate(path, size)
        if form == "lime" and size == 32 + PAGE:
            # Cut between two ranges a LiME image is whole: nothing in it counts them.
            with open_dump(path) as dump:
                assert dump.memory.size == PAGE
            continue
        with pytest.raises(DumpError) as refused:
            open_dump(path)
        assert refused.value.path == str(path)
        assert str(path) in str(refused.value)
        # Of less than the first bytes nobody knows what it was: no raw image, for that is whole pages.
        assert (refused.value.offset is None) == (size < 4), size


def test_a_raw_image_cut_short_is_refused_where_it_is_no_whole_page(tmp_path: Path) -> None:
    path = tmp_path / "cut"
    path.write_bytes(flat(chain(4), 0x8000))
    for size in (*range(0x7FFF, 0x6FFF, -1), 0x5001, 0x5000):
        os.truncate(path, size)
        if size % PAGE:
            with pytest.raises(DumpError, match=f"found {size} bytes, expected a multiple of 4096"):
                open_dump(path)
        else:
            # Whole pages are an image: of less memory.
            with open_dump(path) as dump:
                assert len(dump.maps(cr3=0x1000)) == 1
    path.write_bytes(flat(chain(4), 0x8000))
    for size in (0x4000, 0x3000, 0x2000):
        os.truncate(path, size)
        with open_dump(path) as dump:
            assert dump.page_tables(0x1000).leaves().absent.count == 1
    os.truncate(path, 0x1000)
    with open_dump(path) as dump, pytest.raises(DumpError, match="CR3 0x1000: its table at gpa 0x1000 not in the dump"):
        dump.maps(cr3=0x1000)
    os.truncate(path, 0)
    with pytest.raises(DumpError, match="found 0 bytes"):
        open_dump(path)


@pytest.mark.parametrize(
    ("field", "value", "offset", "text"),
    [
        ("class", 1, 4, "ELF field e_class: found 1, expected 2 (64-bit)"),
        ("data", 2, 5, "ELF field e_data: found 2, expected 1 (little endian)"),
        ("ident", 0, 6, "ELF field e_ident_version: found 0, expected 1"),
        ("type", 2, 16, "ELF field e_type: found 2, expected 4 (a core file)"),
        ("machine", 3, 18, "ELF field e_machine: found 3 (i386), expected 62"),
        ("machine", 183, 18, "ELF field e_machine: found 183 (AArch64), expected 62"),
        ("machine", 999, 18, "ELF field e_machine: found 999, expected 62"),
        ("phentsize", 32, 54, "ELF field e_phentsize: found 32, expected 56"),
        ("phnum", 0, 56, "number of program headers: found 0, expected 1 to 1,048,576"),
        ("phnum", 0xFFFE, 64, "the table of 65,534 program headers ends after the file"),
        ("phnum", 0xFFFF, 40, "ELF field e_shoff: found 0, expected a section header, as e_phnum is PN_XNUM"),
        ("phoff", 1 << 63, 1 << 63, "the table of 3 program headers ends after the file: found 0 bytes"),
        ("phoff", (1 << 64) - 8, (1 << 64) - 8, "the table of 3 program headers ends after the file"),
    ],
)
def test_an_elf_header_that_is_no_x86_64_core_is_refused(
    opened: Open, field: str, value: int, offset: int, text: str
) -> None:
    image = small_elf()
    image.header = {field: value}
    with pytest.raises(DumpError) as refused:
        opened(image.build())
    assert text in str(refused.value)
    assert refused.value.offset == offset


def test_more_segments_than_16_bits_count_are_counted_by_the_section_header(opened: Open) -> None:
    image = small_elf()
    size = len(image.build())

    def with_section(count: int, at: int = size) -> bytes:
        image.header = {"phnum": 0xFFFF, "shoff": at}
        return image.build() + bytes(44) + struct.pack("<I", count) + bytes(16)

    assert len(opened(with_section(3))) == 1
    with pytest.raises(DumpError, match="found 4,294,967,295, expected 1 to 1,048,576") as refused:
        opened(with_section(0xFFFFFFFF))
    assert refused.value.offset == size + 44
    with pytest.raises(DumpError, match="the table of 1,000,000 program headers ends after the file"):
        opened(with_section(1_000_000))
    with pytest.raises(DumpError, match="the section header that counts the segments ends after the file"):
        opened(with_section(3, at=size + 1))


@pytest.mark.parametrize(
    ("lies", "text"),
    [
        ({"filesz": 1 << 40, "memsz": 1 << 40}, "segment of gpa 0x3000 leaves the file"),
        ({"filesz": (1 << 64) - 1, "memsz": (1 << 64) - 1}, "segment of gpa 0x3000 leaves the file"),
        ({"offset": (1 << 64) - 0x1000}, "segment of gpa 0x3000 leaves the file"),
        ({"offset": 1 << 63}, "segment of gpa 0x3000 leaves the file"),
        ({"memsz": 0x1000}, "segment has more bytes in the file than in memory: found p_filesz 0x2000"),
        ({"paddr": (1 << 64) - 0x1000}, "segment leaves the physical address space"),
        ({"paddr": 1 << 52}, "segment leaves the physical address space"),
        ({"paddr": (1 << 52) - 0x1000}, "segment leaves the physical address space"),
        ({"paddr": 0x2000}, "segment 0x2000-0x4000 overlaps 0x1000-0x3000"),
        ({"paddr": 0x1000}, "overlaps 0x1000-0x3000"),
        ({"paddr": 0x2FFF}, "segment 0x2fff-0x4fff overlaps 0x1000-0x3000"),
        ({"paddr": 0}, "segment 0x1000-0x3000 overlaps 0x0-0x2000"),
    ],
)
def test_a_segment_that_lies_is_refused(opened: Open, lies: dict[str, int], text: str) -> None:
    image = small_elf()
    second = image.segments[1]
    image.segments = [image.segments[0], Segment(second.paddr, second.data, lies)]
    with pytest.raises(DumpError) as refused:
        opened(image.build())
    assert text in str(refused.value)
    # Of two that overlap, the one that begins later is told.
    headers = (64 + 56, 64 + 2 * 56)
    assert refused.value.offset == headers[0 if lies == {"paddr": 0} else 1]


def test_an_overlap_is_seen_with_a_segment_that_is_no_neighbour(opened: Open) -> None:
    """In the order of addresses a short segment stands between the long one and the one that contradicts it."""
    image = ElfImage([Segment(0x1000, bytes(4 * PAGE)), Segment(0x2000, b""), Segment(0x4000, bytes(PAGE))])
    inside = {"offset": len(image.build()) - 4 * PAGE, "filesz": PAGE, "memsz": PAGE}
    image.segments = [image.segments[0], Segment(0x2000, b"", inside), image.segments[2]]
    with pytest.raises(DumpError, match="segment 0x4000-0x5000 overlaps 0x1000-0x5000"):
        opened(image.build())


@pytest.mark.parametrize("form", ["elf", "lime"])
def test_more_segments_than_are_held_are_refused(opened: Open, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setattr(f"shadow_mmu.dumps.{form}.MAX_SEGMENTS", 4)
    gpas = [0x1000 * n for n in range(1, 6)]
    for count in (3, 4, 5):
        segments = [Segment(gpa, table({})) for gpa in gpas[:count]]
        # An ELF has one more program header, that of the notes.
        elf = ElfImage(segments[: count - 1]).build()
        data = elf if form == "elf" else b"".join(lime_range(one.paddr, one.data) for one in segments)
        if count <= 4:
            opened(data, cr3=0x1000)
        else:
            with pytest.raises(DumpError, match=r"too many segments|found 5, expected 1 to 4"):
                opened(data, cr3=0x1000)


def test_segments_that_name_the_same_bytes_of_the_file_may_overlap(opened: Open, tmp_path: Path) -> None:
    """A dump by virtual addresses lists memory twice; there is nothing to contradict."""
    pages = chain(4)
    image = ElfImage([Segment(0x1000, b"".join(pages[gpa] for gpa in sorted(pages)))])
    twice = ElfImage([*image.segments, Segment(0x2000, b"")])
    at = len(twice.build()) - 4 * PAGE
    twice.segments = [image.segments[0], Segment(0x2000, b"", {"offset": at + PAGE, "filesz": PAGE, "memsz": PAGE})]
    assert len(opened(twice.build())) == 1
    with open_dump(tmp_path / "dump") as dump:
        assert [str(one) for one in dump.memory.ranges] == ["0x1000-0x5000"]
    twice.segments = [image.segments[0], Segment(0x2000, b"", {"offset": at, "filesz": PAGE, "memsz": PAGE})]
    with pytest.raises(DumpError, match="segment 0x2000-0x3000 overlaps 0x1000-0x5000"):
        opened(twice.build())


def test_bytes_that_a_segment_has_not_in_the_file_are_absent_not_zero(opened: Open, tmp_path: Path) -> None:
    pages = chain(4)
    image = ElfImage([Segment(0x1000, b"".join(pages[gpa] for gpa in sorted(pages)), {"memsz": 64 * PAGE})])
    assert len(opened(image.build())) == 1
    with open_dump(tmp_path / "dump") as dump:
        assert dump.memory.size == 4 * PAGE
        with pytest.raises(DumpError, match="8 bytes of memory at gpa 0x5000 not in the dump"):
            dump.memory.read(0x5000, 8)


@pytest.mark.parametrize("segments", [[], [Segment(0x1000, b"")], [Segment(0x1000, b"", {"memsz": 1 << 30})]])
def test_a_dump_without_memory_is_refused(opened: Open, segments: list[Segment]) -> None:
    with pytest.raises(DumpError, match="no memory in the dump: expected at least one segment"):
        opened(ElfImage(segments).build())


@pytest.mark.parametrize(
    ("notes", "text"),
    [
        (struct.pack("<III", 5, 0xFFFFFFFF, 0) + b"QEMU\0\0\0\0", "note leaves its segment: found a name of 0x5"),
        (struct.pack("<III", 0xFFFFFFFF, 440, 0), "note leaves its segment: found a name of 0xffffffff"),
        (struct.pack("<III", 0xFFFFFFFF, 0xFFFFFFFF, 0), "note leaves its segment"),
        (struct.pack("<II", 5, 440), "the header of a note leaves its segment: found 8 bytes, expected 12"),
        (note(b"QEMU\0", 0, bytes(100)), "QEMU's CPU note is too short: found 100 bytes, expected at least 432"),
        (note(b"QEMU\0", 0, qemu_state(Cpu(), version=2)), "QEMU's CPU note has another version: found 2, expected 1"),
        (note(b"QEMU\0", 0, qemu_state(Cpu(), size=0)), "QEMU's CPU note has another size: found 0"),
        (note(b"QEMU\0", 0, qemu_state(Cpu(), size=441)), "QEMU's CPU note has another size: found 441"),
        (bytes(12) * 70_000, "too many notes: expected at most 65,536"),
    ],
)
def test_notes_that_lie_are_refused(opened: Open, notes: bytes, text: str) -> None:
    image = small_elf()
    image.notes = notes
    with pytest.raises(DumpError) as refused:
        opened(image.build())
    assert text in str(refused.value)
    assert refused.value.offset is not None


@pytest.mark.parametrize(
    ("lies", "text"),
    [
        ({"filesz": (1 << 64) - 1}, "note segment leaves the file: found 0xffffffffffffffff bytes"),
        ({"offset": (1 << 64) - 1}, "a note segment ends after the file"),
        ({"offset": 1 << 40}, "a note segment ends after the file"),
    ],
)
def test_a_note_segment_that_lies_is_refused(opened: Open, lies: dict[str, int], text: str) -> None:
    image = small_elf()
    image.note_header = lies
    with pytest.raises(DumpError) as refused:
        opened(image.build())
    assert text in str(refused.value)


def test_notes_of_others_are_passed_over(opened: Open) -> None:
    image = small_elf()
    foreign = note(b"VMCOREINFO\0", 0, b"OSRELEASE=6.1\n") + note(b"X" * 400, 7, bytes(3)) + note(b"", 0, b"")
    # QEMU before version 5 wrote no kernel_gs_base.
    older = note(b"QEMU\0", 0, qemu_state(Cpu(), size=432)[:432])
    image.notes = foreign + older + note(b"CORE\0", 1, bytes(336)) + struct.pack("<III", 5, 1, 9) + b"LAST\0\0\0\0!"
    assert len(opened(image.build())) == 1


def test_a_dump_without_registers_wants_a_cr3(opened: Open) -> None:
    image = small_elf()
    image.note_header = {"type": PT_NOTE + 1}
    for data in (image.build(), small_lime(), flat(chain(4), 0x5000)):
        with pytest.raises(ConfigError, match="no vCPU's registers are in the dump: expected a CR3"):
            opened(data)
        assert len(opened(data, cr3=0x1000)) == 1


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (lime_range(0x1000, bytes(PAGE), version=2), "LiME range of another version: found 2, expected 1"),
        (lime_range(0x1000, bytes(PAGE)) + bytes(32), "no LiME range: found b'\\x00\\x00\\x00\\x00', expected b'EMiL'"),
        (lime_range(0x1000, bytes(PAGE)) + b"EMi", "the header of a LiME range ends after the file"),
        (lime_range(0x1000, b"", last=0xFFF), "LiME range makes no sense: found first gpa 0x1000, last 0xfff"),
        (lime_range(0x1000, bytes(PAGE), last=(1 << 64) - 1), "LiME range makes no sense"),
        (lime_range((1 << 52) - 1, bytes(2)), "LiME range makes no sense"),
        (lime_range(0x1000, bytes(PAGE), last=(1 << 52) - 1), "segment of gpa 0x1000 leaves the file"),
        (lime_range(0x1000, bytes(PAGE), last=0x2000), "segment of gpa 0x1000 leaves the file"),
        (lime_range(0x1000, bytes(PAGE)) * 2, "segment 0x1000-0x2000 overlaps 0x1000-0x2000"),
    ],
)
def test_a_lime_image_that_lies_is_refused(opened: Open, data: bytes, text: str) -> None:
    with pytest.raises(DumpError) as refused:
        opened(data, cr3=0x1000)
    assert text in str(refused.value)
    assert refused.value.offset is not None


@pytest.mark.parametrize(
    ("start", "text"),
    [
        (b"KDUMP   ", "this is a kdump-compressed dump: expected an ELF dump: dump-guest-memory without -z"),
        (b"PAGEDU64", "this is a Windows crash dump"),
        (b"QFI\xfb", "this is a qcow2 image"),
        (b"\xfd7zXZ\0", "this is an xz archive: expected the file in it"),
        (b"\x1f\x8b", "this is a gzip archive"),
        (b"\x28\xb5\x2f\xfd", "this is a zstd archive"),
    ],
)
def test_a_file_of_another_format_is_not_taken_for_raw_memory(opened: Open, start: bytes, text: str) -> None:
    with pytest.raises(DumpError, match=text.replace("(", "\\(")):
        opened(start.ljust(PAGE, b"\0"), cr3=0)
