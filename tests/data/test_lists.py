from pathlib import Path

import pytest
from PIL import Image

from cjepa.data import DataConfig, FolderConfig, ImageSource, ListConfig, UnreadableImageError, open_source
from cjepa.data.lists import LONGEST_LINE, open_list
from cjepa.errors import InputError


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """a.png .. d.png of one grey each in a folder `pictures`."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, name in enumerate("abcd"):
        Image.new("RGB", (3 + number, 2), (number,) * 3).save(folder / f"{name}.png")
    return folder


def listed(folder: Path, text: str | bytes, **keys: object) -> ImageSource:
    path = folder / "list.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return open_list(ListConfig(path=path, **keys), 10_000).train


def test_the_order_of_the_list_is_kept(pictures: Path) -> None:
    source = listed(pictures, "c.png\na.png\n\nb.png\r\n")
    assert source.names == ["c.png", "a.png", "b.png"]
    assert source.labels.tolist() == [-1, -1, -1]
    assert source.classes == ()
    assert source.load(0).getpixel((0, 0)) == (2, 2, 2)
    assert isinstance(source, ImageSource)


def test_labels_follow_a_tab(pictures: Path) -> None:
    source = listed(pictures, "c.png\tdog\na.png\tcat\nb.png\t\nd.png\n")
    assert source.classes == ("cat", "dog")
    assert source.labels.tolist() == [1, 0, -1, -1]


def test_numbers_are_ordered_by_value(pictures: Path) -> None:
    source = listed(pictures, "a.png\t10\nb.png\t9\n")
    assert source.classes == ("9", "10")
    assert source.labels.tolist() == [1, 0]


def test_absolute_paths_below_the_root_become_relative(pictures: Path, tmp_path: Path) -> None:
    source = listed(pictures, f"{pictures}/a.png\n./b.png\n")
    assert source.names == ["a.png", "b.png"]
    with pytest.raises(InputError, match=r"line 1: .* is not below .*set data\.source\.root"):
        listed(pictures, "/etc/passwd\na.png\n")
    (tmp_path / "z.png").write_bytes((pictures / "a.png").read_bytes())
    assert listed(pictures, "z.png\npictures/a.png\n", root=tmp_path).names == ["z.png", "pictures/a.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("../secret.png\na.png\n", r"line 1: \.\./secret\.png is not a path below"),
        ("a.png\nb/../../x.png\n", r"line 2: .* is not a path below"),
        (".\na.png\n", r"line 1: \. is not a path below"),
        (
            "a.png\ngone.png\nmissing.png\n",
            r"2 of the files that .*list\.txt lists .*gone\.png \(line 2\)",
        ),
        (b"a.png\nb\0.png\n", "1 of the files"),
        ("a.png\nb.png\nfolder\n", r"1 of the files that .* are not there in .*folder \(line 3\)"),
        ("a.png\nb.png\n".encode("utf-16"), r"list\.txt is written in UTF-16; save it in UTF-8"),
        ("", "lists no images; write one path a line"),
        (b"a.png\tcaf\xe9\nb.png\n", "line 1: the label is not UTF-8"),
        ("x" * (LONGEST_LINE + 1), "line 1 has more than 8192 bytes: this is no list"),
    ],
)
def test_other_lists_are_refused(pictures: Path, text: str | bytes, message: str) -> None:
    (pictures / "folder").mkdir()
    with pytest.raises(InputError, match=message):
        listed(pictures, text)


def test_a_mark_of_the_byte_order_is_no_part_of_a_name(pictures: Path) -> None:
    assert listed(pictures, b"\xef\xbb\xbfa.png\r\nb.png\r\n").names == ["a.png", "b.png"]


def test_what_is_no_file_is_refused(pictures: Path) -> None:
    for path in (pictures, pictures / "none.txt"):
        with pytest.raises(InputError, match="is not a file; give a text file"):
            open_list(ListConfig(path=path), 10_000)


def test_a_link_out_of_the_root_is_not_followed(pictures: Path, tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "outside.png")
    (pictures / "link.png").symlink_to(tmp_path / "outside.png")
    (pictures / "inner.png").symlink_to(pictures / "a.png")
    source = listed(pictures, "link.png\ninner.png\n")
    with pytest.raises(UnreadableImageError, match=r"a link leads out of the root"):
        source.load(0)
    source.load(1)
    assert listed(tmp_path, "pictures/link.png\npictures/a.png\n").load(0).size == (2, 2)


def test_a_second_list_is_the_test_split(pictures: Path) -> None:
    (pictures / "test.txt").write_text("d.png\tb\n")
    (pictures / "train.txt").write_text("a.png\ta\nb.png\tc\n")
    splits = open_list(ListConfig(path=pictures / "train.txt", test=pictures / "test.txt"), 10_000)
    assert splits.test is not None
    assert splits.train.classes == splits.test.classes == ("a", "b", "c")
    assert splits.train.labels.tolist() == [0, 2]
    assert splits.test.labels.tolist() == [1]


def test_the_fingerprint_knows_files_order_and_labels(pictures: Path) -> None:
    first = listed(pictures, "a.png\nb.png\n").fingerprint
    assert listed(pictures, "a.png\r\n\nb.png").fingerprint == first
    others = {"b.png\na.png\n", "a.png\nc.png\n", "a.png\t1\nb.png\t2\n", "a.png\t1\nb.png\t3\n"}
    prints = {listed(pictures, text).fingerprint for text in others}
    assert len(prints | {first}) == 5


def test_a_bare_path_is_recognised(pictures: Path) -> None:
    listed(pictures, "b.png\na.png\n")
    source = open_source(DataConfig(source=FolderConfig(path=pictures / "list.txt")), 0).train
    assert source.names == ["b.png", "a.png"]
