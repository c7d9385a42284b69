"""The walk over archives of strangers agrees with tarfile on good ones and says what is wrong with others."""

import io
import tarfile
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cjepa.data.tar_members import DamagedTarError, Member, tar_members

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def packed(
    files: dict[str, bytes], format: int = tarfile.USTAR_FORMAT, extra: list[tarfile.TarInfo] | None = None
) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        for info in extra or []:
            tar.addfile(info)
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def walked(content: bytes) -> list[Member]:
    return list(tar_members(io.BytesIO(content), len(content)))


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


FILES = {"a/0.jpg": b"x" * 700, "a/0.cls": b"3", "empty.png": b"", "b.png": b"y" * 512}
LONG = {f"{'d' * 60}/{'n' * 150}/grüße-{'e' * 90}.png": b"long", "z.png": b"short"}


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_members_are_those_of_tarfile(format: int) -> None:
    files = FILES if format == tarfile.USTAR_FORMAT else FILES | LONG
    content = packed(files, format)
    members = walked(content)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        assert members == [Member(info.name, info.offset_data, info.size) for info in tar]
    assert {m.name: content[m.offset : m.offset + m.size] for m in members} == files


def test_links_folders_and_devices_are_passed_over() -> None:
    extra = [
        special("up.png", tarfile.SYMTYPE, "../../etc/passwd"),
        special("hard.png", tarfile.LNKTYPE, "/etc/passwd"),
        special("folder", tarfile.DIRTYPE),
        special("pipe.png", tarfile.FIFOTYPE),
        special("device.png", tarfile.CHRTYPE),
    ]
    assert [member.name for member in walked(packed(FILES, extra=extra))] == list(FILES)


def test_a_leading_dot_is_dropped() -> None:
    assert [member.name for member in walked(packed({"./a/./b.png": b"1", ".//c.png": b"2"}))] == ["a/b.png", "c.png"]


@pytest.mark.parametrize(
    "name", ["../x.png", "/etc/passwd", "a/../../x.png", "C:x.png", "a\\..\\x.png", "..", "\\x.png"]
)
def test_names_that_lead_out_are_refused(name: str) -> None:
    with pytest.raises(DamagedTarError, match="no name below a folder"):
        walked(packed({name: b"x"}, tarfile.PAX_FORMAT))


GOOD = packed(FILES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "ends at byte 0 without an end mark"),
        (b"text" * 200, "byte 0 begins no valid header"),
        (GOOD[:600], "ends within a member, at 600 of at least 1,536 bytes"),
        (GOOD[:1536], "ends at byte 1,536 without an end mark"),
        (GOOD[:-10240] + GOOD[:1536], "ends at byte"),
        (GOOD[:100] + b"\xff" + GOOD[101:], "byte 0 begins no valid header"),
        (GOOD + GOOD, "goes on behind its end mark"),
        (b"\x1f\x8b" + b"\0" * 600, r"compressed \(gzip\).*decompress it first"),
        (b"\x28\xb5\x2f\xfd" + b"\1" * 600, r"compressed \(zstd\)"),
        (b"\x1f\x8b", "compressed"),
    ],
)
def test_damage_is_named(content: bytes, message: str) -> None:
    if content.startswith(GOOD[:-10240]) and message == "ends at byte":
        content = GOOD[: GOOD.rindex(b"y") + 1 + 0]
    with pytest.raises(DamagedTarError, match=message):
        walked(content)


def header(name: bytes = b"x.png", size: bytes = b"00000000000", kind: bytes = b"0") -> bytes:
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108] = b"0000644\0"
    block[124:136] = size.ljust(12, b"\0")
    block[136:148] = b"00000000000\0"
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header(size=b"\xff" * 12), "negative size|no valid header"),
        (header(size=b"77777777777"), "ends within a member"),
        (header(kind=b"S"), "sparse"),
        (header(kind=b"x", size=b"77777777777"), "ends within a member"),
        (header(kind=b"x", size=b"00000001000") + b"nonsense".ljust(512, b"\0"), "extended header is damaged"),
        (header(kind=b"x", size=b"00000001000") + b"999999 path=x\n".ljust(512, b"\0"), "extended header is damaged"),
        (header(kind=b"x", size=b"00000001000") + b"14 size=-100\n".ljust(512, b"\0"), "damaged|states the size"),
        (header(kind=b"x", size=b"00000000015") + b"13 size=-999\n".ljust(512, b"\0") + header(), "states the size"),
        (header(kind=b"x", size=b"00000000025") + b"21 GNU.sparse.major=1\n"[:21].ljust(512, b"\0"), "damaged|sparse"),
    ],
)
def test_hostile_headers_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(DamagedTarError, match=message):
        walked(content + bytes(1024))


def test_an_extended_header_of_a_gigabyte_is_not_read() -> None:
    class Sparse(io.BytesIO):
        """A file of 2 GB that would notice being read whole."""

        def seek(self, position: int, whence: int = 0) -> int:
            self.position = position
            return position

        def read(self, size: int = -1) -> bytes:
            assert 0 <= size <= 1 << 20
            block = header(kind=b"x", size=b"10000000000")
            return block[:size] if self.position == 0 else bytes(size)

    with pytest.raises(DamagedTarError, match="claims 1,073,741,824 bytes"):
        list(tar_members(Sparse(), 2 << 30))


def test_many_empty_members_take_little_time() -> None:
    content = header() * 5_000 + bytes(1024)
    start = time.process_time()
    assert sum(1 for _ in tar_members(io.BytesIO(content), len(content))) == 5_000
    assert time.process_time() - start < 5


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([packed(FILES | LONG, tarfile.PAX_FORMAT), packed(FILES | LONG, tarfile.GNU_FORMAT), GOOD]),
    st.lists(st.tuples(st.integers(0, 9000), st.binary(min_size=1, max_size=12)), max_size=4),
    st.integers(0, 12_000),
)
def test_mutated_archives_are_read_or_refused_and_nothing_else(
    content: bytes, changes: list[tuple[int, bytes]], length: int
) -> None:
    changed = bytearray(content[:length])
    for position, replacement in changes:
        changed[position : position + len(replacement)] = replacement
    try:
        members = walked(bytes(changed))
    except DamagedTarError:
        return
    for member in members:
        assert member.offset >= 512
        assert member.offset + member.size <= len(changed)
        assert not member.name.startswith("/")
        assert ".." not in member.name.split("/")
