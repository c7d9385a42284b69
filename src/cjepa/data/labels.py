"""From the class names that images come with to numbers: one rule for all sources."""

from array import array
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from cjepa.data.source import NO_LABEL
from cjepa.errors import InputError

MOST_CLASSES = 1_000_000
"""More names than this are captions or identifiers, not classes, and would fill the memory."""


class ClassNames:
    """Class names in the order in which they are met, each with a provisional number."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, name: str | None) -> int:
        """The provisional number of a name, NO_LABEL for None; raises InputError for too many names."""
        if name is None:
            return NO_LABEL
        found = self._numbers.setdefault(name, len(self._numbers))
        if found >= MOST_CLASSES:
            raise InputError(
                f"data: more than {MOST_CLASSES:,} different labels; labels must name classes, so leave them out"
            )
        return found

    @property
    def met(self) -> list[str]:
        """The names by their provisional number."""
        return list(self._numbers)

    def final(self, classes: tuple[str, ...]) -> npt.NDArray[np.int64]:
        """The index in `classes` for each provisional number, with NO_LABEL at the end, where -1 points."""
        number = {name: index for index, name in enumerate(classes)}
        return np.array([*(number.get(name, NO_LABEL) for name in self._numbers), NO_LABEL], dtype=np.int64)


class LabelColumn:
    """The label of one image after another."""

    def __init__(self) -> None:
        self.classes = ClassNames()
        self._numbers = array("i")

    def add(self, name: str | None) -> None:
        """Append the label of the next image, None if it has none."""
        self._numbers.append(self.classes.number(name))

    def labels(self, classes: tuple[str, ...]) -> npt.NDArray[np.int64]:
        """All of them as indices into `classes`."""
        return self.classes.final(classes)[np.frombuffer(self._numbers, np.int32)]


def ordered_classes(names: Iterable[str]) -> tuple[str, ...]:
    """The classes that these names make: by value if all are whole numbers, else by spelling; one alone is none."""
    ordered = ordered_names(names)
    return ordered if len(ordered) > 1 else ()


def ordered_names(names: Iterable[str]) -> tuple[str, ...]:
    """The same of one split, where one name alone may be a class: the other split may have more."""
    distinct = set(names)
    if all(name.isascii() and name.isdigit() and len(name) < 19 for name in distinct):
        return tuple(sorted(distinct, key=lambda name: (int(name), name)))
    return tuple(sorted(distinct))
