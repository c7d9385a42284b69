"""Names of images without a Python object for each: 10^8 of them must not cost tens of gigabytes."""

import operator
import os
from abc import abstractmethod
from array import array
from collections.abc import Iterator, Sequence
from typing import SupportsIndex, overload

import numpy as np
import numpy.typing as npt


class LazyNames(Sequence[str]):
    """A list of names that are made when they are asked for; equal to any sequence of the same names."""

    @abstractmethod
    def name(self, index: int) -> str:
        """The name at an index in 0 .. len - 1."""

    @overload
    def __getitem__(self, index: SupportsIndex) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: SupportsIndex | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self.name(each) for each in range(*index.indices(len(self)))]
        position = operator.index(index)
        position += len(self) if position < 0 else 0
        if not 0 <= position < len(self):
            raise IndexError(index)
        return self.name(position)

    def __iter__(self) -> Iterator[str]:
        return map(self.name, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


class Names(LazyNames):
    """Names as bytes laid end to end; `ends` holds where each one ends. Both may be memory-mapped files."""

    def __init__(self, text: npt.NDArray[np.uint8], ends: npt.NDArray[np.integer]) -> None:
        self.text = text
        self.ends = ends

    def __len__(self) -> int:
        return len(self.ends)

    def raw(self, index: int) -> bytes:
        """The bytes of a name, for files those of the file system."""
        start = int(self.ends[index - 1]) if index else 0
        return self.text[start : int(self.ends[index])].tobytes()

    def name(self, index: int) -> str:
        """The name as it can be printed."""
        return printable(self.raw(index))


class Chosen(LazyNames):
    """Some names of a sequence, in the given order."""

    def __init__(self, names: Sequence[str], indices: npt.NDArray[np.int64]) -> None:
        self.names = names
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        """The name that the index stands for."""
        return self.names[int(self.indices[index])]


class NameList:
    """Names while they are found, at a few bytes more than their length each."""

    def __init__(self) -> None:
        self._text = bytearray()
        self._ends = array("q")

    @classmethod
    def of(cls, text: npt.NDArray[np.uint8], ends: npt.NDArray[np.int64]) -> "NameList":
        """The list that these columns came from."""
        made = cls()
        made._text, made._ends = bytearray(text.tobytes()), array("q", ends.tolist())
        return made

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, name: bytes) -> None:
        """Append a name."""
        self._text += name
        self._ends.append(len(self._text))

    def columns(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """The names end to end, and where each one ends; copies."""
        return np.array(self._text, np.uint8), np.array(self._ends, np.int64)

    def names(self) -> Names:
        """All of them, at least one; nothing can be added any more."""
        text = np.frombuffer(self._text, np.uint8) if self._text else np.empty(0, np.uint8)
        return Names(text, np.frombuffer(self._ends, np.int64))


def printable(name: bytes | str) -> str:
    """The name with bytes that are not UTF-8 spelt out, so that it can be logged and printed."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
