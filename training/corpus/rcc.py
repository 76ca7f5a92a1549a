"""Reads Qt resource archives (`.rcc`), the form in which GCompris carries its pictures.

The format is that of Qt's own `rcc` tool: a header with the offsets of three sections (a tree of fixed-size nodes, the
data, the names), all numbers big-endian. Version 2 and 3 differ in 4 more bytes of header that nothing here needs.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

_HEADER = struct.Struct(">4s4I")
_NODE = struct.Struct(">IHII")
_IS_ZLIB, _IS_FOLDER, _IS_ZSTANDARD = 1, 2, 4


@dataclass(frozen=True)
class ResourceArchive:
    """One archive in memory. ValueError when `content` is no archive of version 1 to 3."""

    content: bytes

    def __post_init__(self) -> None:
        magic, version = self._header[:2]
        if magic != b"qres" or version not in (1, 2, 3):
            raise ValueError("This is not a Qt resource archive of version 1, 2 or 3.")

    @property
    def _header(self) -> tuple[bytes, int, int, int, int]:
        """Magic, version, and where tree, data and names begin."""
        magic, version, tree, data, names = _HEADER.unpack_from(self.content)
        return magic, version, tree, data, names

    def files(self) -> dict[str, bytes]:
        """Every file by its path inside the archive, unpacked."""
        return {path: self._data(offset, flags) for path, offset, flags in self._walk(0, "")}

    def _walk(self, node: int, folder: str) -> Iterator[tuple[str, int, int]]:
        """(path, offset of its data, flags) of every file below `node`, which is a folder."""
        _, flags, count, first = self._node(node)
        assert flags & _IS_FOLDER, "Only folders are walked. This is a bug."
        for child in range(first, first + count):
            name, flags, _, offset = self._node(child)
            path = f"{folder}{self._name(name)}"
            if flags & _IS_FOLDER:
                yield from self._walk(child, f"{path}/")
            else:
                yield path, offset, flags

    def _node(self, index: int) -> tuple[int, int, int, int]:
        """Name offset, flags, then for a folder (number of children, first child), for a file (locale, data offset)."""
        _, version, tree, _, _ = self._header
        size = _NODE.size if version == 1 else _NODE.size + 8  # from version 2 on with the time of change
        name, flags, third, fourth = _NODE.unpack_from(self.content, tree + index * size)
        return name, flags, third, fourth

    def _name(self, offset: int) -> str:
        names = self._header[4]
        (length,) = struct.unpack_from(">H", self.content, names + offset)
        begin = names + offset + 2 + 4  # after the length comes a hash
        return self.content[begin : begin + 2 * length].decode("utf-16-be")

    def _data(self, offset: int, flags: int) -> bytes:
        begin = self._header[3] + offset
        (size,) = struct.unpack_from(">I", self.content, begin)
        packed = self.content[begin + 4 : begin + 4 + size]
        if flags & _IS_ZSTANDARD:
            raise ValueError("This archive is compressed with Zstandard, which is not read here.")
        return zlib.decompress(packed[4:]) if flags & _IS_ZLIB else packed
