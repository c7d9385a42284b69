import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cjepa.data.labels import MOST_CLASSES, ClassNames, LabelColumn, ordered_classes
from cjepa.data.names import Chosen, NameList, Names
from cjepa.errors import InputError

texts = st.lists(st.text(st.characters(blacklist_categories=["Cs"]), max_size=12), max_size=8)


def names_of(texts: list[str]) -> Names:
    made = NameList()
    for text in texts:
        made.add(text.encode())
    return made.names()


@settings(deadline=None, max_examples=50)
@given(texts.filter(len), st.data())
def test_names_are_a_list_without_the_objects(texts: list[str], data: st.DataObject) -> None:
    names = names_of(texts)
    assert len(names) == len(texts)
    assert list(names) == texts
    assert names == texts
    assert names != [*texts, "more"]
    assert texts == names
    index = data.draw(st.integers(-len(texts), len(texts) - 1))
    assert names[index] == texts[index]
    assert names[np.int64(index)] == texts[index]
    part = slice(data.draw(st.integers(-9, 9)), data.draw(st.integers(-9, 9)))
    assert names[part] == texts[part]
    assert pickle.loads(pickle.dumps(names)) == texts
    made = NameList()
    for text in texts:
        made.add(text.encode())
    assert NameList.of(*made.columns()).names() == texts


@pytest.mark.parametrize("index", [2, -3, 10**12])
def test_an_index_outside_is_refused(index: int) -> None:
    with pytest.raises(IndexError):
        names_of(["a", "b"])[index]


def test_a_name_is_no_list_of_letters() -> None:
    assert names_of(["a", "b"]) != "ab"


def test_chosen_names_follow_their_indices() -> None:
    chosen = Chosen(["a", "b", "c"], np.array([2, 0, 2]))
    assert chosen == ["c", "a", "c"]
    assert chosen[-1] == "c"


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["b", "a", "b"], ("a", "b")),
        (["10", "9", "9"], ("9", "10")),
        (["10", "9", "x"], ("10", "9", "x")),
        (["only", "only"], ()),
        ([], ()),
    ],
)
def test_classes_are_ordered_by_value_or_spelling(names: list[str], classes: tuple[str, ...]) -> None:
    assert ordered_classes(names) == classes


def test_labels_are_numbered_once_all_classes_are_known() -> None:
    column = LabelColumn()
    for name in ("z", None, "a", "z", "other"):
        column.add(name)
    assert column.labels(("a", "z")).tolist() == [1, -1, 0, 1, -1]
    assert column.labels(()).tolist() == [-1] * 5


def test_captions_are_no_classes() -> None:
    names = ClassNames()
    names._numbers = dict.fromkeys(map(str, range(MOST_CLASSES)), 0)
    with pytest.raises(InputError, match="more than 1,000,000 different labels"):
        names.number("one more")
