"""Configs from files and arguments: what is accepted, what is refused and what the refusal says."""

import math
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, model_validator

from cjepa.config import (
    KeyHelp,
    apply_overrides,
    describe_keys,
    differences,
    dump_yaml,
    json_schema,
    load_yaml,
    nearest,
    parse,
)
from cjepa.errors import InputError
from cjepa.types import Part

SIZES = {"tiny": {"width": 192, "heads": 3}, "small": {"width": 384, "heads": 6}}


class Encoder(Part):
    width: int = Field(192, gt=0, multiple_of=8)
    """Features of a patch embedding."""
    heads: int = Field(3, gt=0)
    """Attention heads."""
    patch_size: int | tuple[int, int] = 4
    """Side of a patch in pixels."""

    @classmethod
    def named(cls, name: str) -> dict[str, int]:
        if name not in SIZES:
            raise KeyError(f"there is no size {name}; choose one of {', '.join(SIZES)}")
        return SIZES[name]


class Predictor(Part):
    width: int | None = None
    """Features inside the predictor; null for the encoder's."""
    depth: int = 6
    """Blocks."""


class Model(Part):
    encoder: Encoder = Encoder(patch_size=8)
    """The encoder."""
    predictor: Predictor = Predictor()
    """The predictor."""


class Ijepa(Part):
    name: Literal["ijepa"] = "ijepa"
    """Prediction only."""
    loss: Literal["smooth_l1", "mse"] = "smooth_l1"
    """Prediction loss."""


class Projector(Part):
    sizes: tuple[int, ...] = (512, 512)
    """Widths of the layers."""
    epsilon: float = 1e-6
    """Added to the variance."""


class Cjepa(Part):
    name: Literal["cjepa"] = "cjepa"
    """Prediction and VICReg."""
    loss: Literal["smooth_l1", "mse"] = "smooth_l1"
    """Prediction loss."""
    beta: float = Field(0.001, ge=0)
    """Weight of the VICReg term."""
    projector: Projector = Projector()
    """The projector."""


class Sigreg(Part):
    name: Literal["sigreg"] = "sigreg"
    """Prediction and SIGReg."""
    loss: Literal["smooth_l1", "mse"] = "smooth_l1"
    """Prediction loss."""
    projector: Projector = Projector()
    """The projector."""
    slices: int | None = Field(None, ge=1)
    """Random directions."""


class Folder(Part):
    shorthand: ClassVar[str | None] = "path"
    name: Literal["folder"] = "folder"
    """Any nested folder of images."""
    path: Path
    """The folder."""
    test_share: float = 0.1
    """Share of images held out."""


class Demo(Part):
    name: Literal["demo"] = "demo"
    """Embedded images."""
    crops: int = 100
    """Crops of each photograph."""


class Data(Part):
    shorthand: ClassVar[str | None] = "source"
    source: Annotated[Folder | Demo, Field(discriminator="name")] = Demo()
    """Where images come from."""
    crop_scale: tuple[float, float] = (0.3, 1.0)
    """Share of the area that a crop keeps."""

    @model_validator(mode="after")
    def _ordered(self) -> "Data":
        if self.crop_scale[0] > self.crop_scale[1]:
            raise ValueError("crop_scale must be [smallest, largest]; swap its numbers")
        return self


class Optimizer(Part):
    learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate."""
    weight_decay: float = 0.05
    """Decoupled weight decay."""


class Training(Part):
    steps: int = Field(100, gt=0)
    """Training steps."""
    mixed: bool = False
    """bfloat16 autocast."""
    note: str = ""
    """Free text."""
    out: Path | None = None
    """Where to write."""
    optimizer: Optimizer = Optimizer()
    """AdamW."""


class Run(Part):
    seed: int = 0
    """Seed of every draw."""
    model: Model = Model()
    """What is learned."""
    objective: Annotated[Ijepa | Cjepa | Sigreg, Field(discriminator="name")] = Cjepa(beta=0.01)
    """What is minimised."""
    data: Data = Data()
    """Images."""
    training: Training = Training(steps=50)
    """How it runs."""
    probe: Projector | None = None
    """An extra head."""


def after(*overrides: str, values: dict[str, object] | None = None) -> Run:
    return parse(Run, apply_overrides(Run, values or {}, list(overrides)))


def refusal(*overrides: str, values: dict[str, object] | None = None) -> str:
    with pytest.raises(InputError) as caught:
        after(*overrides, values=values)
    return str(caught.value)


# --- unknown keys ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_key", "meant"),
    [
        ("lr", "training.optimizer.learning_rate"),
        ("training.lr", "training.optimizer.learning_rate"),
        ("wd", "training.optimizer.weight_decay"),
        ("learning_rate", "training.optimizer.learning_rate"),
        ("model.patchsize", "model.encoder.patch_size"),
        ("model.encoder.widht", "model.encoder.width"),
        ("model.predictor.widht", "model.predictor.width"),
        ("beta", "objective.beta"),
        ("objective.betta", "objective.beta"),
        ("sedd", "seed"),
        ("optimiser", "training.optimizer"),
        ("crop-scale", "data.crop_scale"),
        ("training.mask_crop_scale", "data.crop_scale"),
    ],
)
def test_an_unknown_key_names_the_one_that_was_meant(given_key: str, meant: str) -> None:
    assert refusal(f"{given_key}=1") == f"unknown key {given_key}; did you mean {meant}?"
    nested: object = 1
    for name in reversed(given_key.split(".")):
        nested = {name: nested}
    with pytest.raises(InputError, match=f"did you mean {meant}\\?$"):
        parse(Run, nested)  # type: ignore[arg-type]


def test_an_unknown_key_without_a_likely_meaning_lists_the_keys_of_its_place() -> None:
    assert refusal("training.zzz=1").endswith(
        "keys of training: training.steps, training.mixed, training.note, training.out, training.optimizer"
    )
    assert "keys here: seed, model" in refusal("qqq=1")
    assert refusal("seed.qqq=1") == "unknown key seed.qqq; seed is a single value without keys of its own"


def test_a_key_of_another_variant_says_which() -> None:
    said = "unknown key objective.beta for objective=ijepa; it belongs to objective=cjepa"
    assert refusal("objective=ijepa", "objective.beta=1") == said
    assert refusal(values={"objective": {"name": "ijepa", "beta": 1}}) == said


@pytest.mark.parametrize("values", [{"training.steps": 3}, {"model": {"encoder.width": 8}}])
def test_a_key_with_dots_in_a_file_is_told_to_be_nested(values: dict[str, object]) -> None:
    """The key that was meant is the one that was written: "did you mean" would say the same again."""
    assert "is written with dots; in a file, write " in refusal(values=values)
    assert "did you mean" not in refusal(values=values)


def test_all_problems_are_reported_at_once() -> None:
    said = refusal(values={"sed": 1, "training": {"steps": 0, "mixed": 1}, "objective": {"name": "x"}})
    assert said.splitlines() == [
        "the configuration has several problems:",
        "  unknown key sed; did you mean seed?",
        '  objective.name: is not one of cjepa, ijepa, sigreg, got "x"',
        "  training.steps: must be greater than 0, got 0",
        "  training.mixed: must be true or false, got 1",
    ]


# --- wrong values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=true", "seed: must be a whole number, got true"),
        ("seed=1.5", "seed: must be a whole number, got 1.5"),
        ("seed=", "'seed=' has no value; write seed=null to unset it"),
        ("training.mixed=yes", 'training.mixed: must be true or false, got "yes"'),
        ("training.optimizer.learning_rate=abc", 'must be a number, got "abc"'),
        ("training.optimizer.learning_rate=-1e-3", "must be greater than 0, got -0.001"),
        ("training.optimizer.weight_decay=1e999", "weight_decay: must be a finite number, got inf"),
        ("training.optimizer.weight_decay=nan", 'must be a number, got "nan"'),
        ("model.encoder.width=7", "model.encoder.width: must be a multiple of 8, got 7"),
        ("model.encoder.patch_size=a", 'patch_size: must be a whole number or a list, got "a"'),
        ("model.predictor.width=a", 'model.predictor.width: must be a whole number or null, got "a"'),
        ("data.crop_scale=[1]", "data.crop_scale[1]: is required but missing"),
        ("data.crop_scale=[1, 2, 3]", "data.crop_scale: must have at most 2 items, got [1, 2, 3]"),
        ("data.crop_scale=[0.5, a]", 'data.crop_scale[1]: must be a number, got "a"'),
        ("data.crop_scale=[1, 0.5]", "data: crop_scale must be [smallest, largest]; swap its numbers"),
        ("objective.loss=mean", 'objective.loss: is not one of mse, smooth_l1, got "mean"'),
        ("objective=ijpea", "objective: 'ijpea' is not one of ijepa, cjepa, sigreg"),
        ("objective.name=ijpea", 'objective.name: is not one of ijepa, cjepa, sigreg, got "ijpea"'),
        ("data.source.name=folder", "data.source.path: is required but missing"),
        ("model.encoder=smal", "model.encoder: there is no size smal; choose one of tiny, small"),
        ("model.predictor=small", "model.predictor is a group of keys and cannot be 'small'"),
        ("training=null", "training is a group of keys and cannot be 'null'; set one of training.steps"),
        ("seed", "'seed' is not of the form key=value"),
        ("=3", "'=3' is not of the form key=value"),
        ("training.note=\udcff", "not valid Unicode"),
        ("seed=" + "9" * 5000, "seed: must be a whole number"),
    ],
)
def test_a_wrong_value_is_refused_with_its_key_and_the_reason(override: str, said: str) -> None:
    message = refusal(override)
    assert said in message
    assert len(message) < 300


# --- values ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("1e3", 1000.0), ("1.", 1.0), (".5", 0.5), ("3", 3.0), ("+2E-1", 0.2)],
)
def test_numbers_may_be_written_in_every_usual_form(text: str, value: float) -> None:
    assert after(f"training.optimizer.learning_rate={text}").training.optimizer.learning_rate == value


@pytest.mark.parametrize("text", ["null", "None", "none", "~"])
def test_null_is_null_where_the_key_allows_it_and_text_elsewhere(text: str) -> None:
    run = after("training.out=/tmp", f"training.out={text}", f"training.note={text}", f"probe={text}")
    assert run.training.out is None
    assert run.training.note == text
    assert run.probe is None


@pytest.mark.parametrize("text", ["2024", "1e3", "true", "[a", "a: b", "a #b", "x=y", "{a}", "*", "007", "- a", "&c"])
def test_text_stays_as_it_is_written(text: str) -> None:
    run = after(f"training.note={text}", f"data={text}", f"training.out={text}")
    assert (run.training.note, run.training.out) == (text, Path(text))
    assert run.data.source == Folder(path=Path(text))


def test_lists_booleans_and_quotes_are_yaml() -> None:
    run = after(
        "data.crop_scale=[1e-1, 1]", "training.mixed=true", 'training.note="null"', "model.encoder.patch_size=[4, 8]"
    )
    assert run.data.crop_scale == (0.1, 1.0)
    assert run.training.mixed is True
    assert run.training.note == "null"
    assert run.model.encoder.patch_size == (4, 8)


def test_later_overrides_win_and_the_given_values_stay_untouched() -> None:
    values = {"seed": 1, "training": {"steps": 5}, "data": {"source": {"name": "demo"}}}
    assert after("seed=2", "seed=3", "training.steps=7", "data.source.crops=9", values=values).seed == 3
    assert values == {"seed": 1, "training": {"steps": 5}, "data": {"source": {"name": "demo"}}}


def test_one_key_of_a_group_keeps_the_rest_of_the_default_that_the_parent_gives_it() -> None:
    assert after("training.mixed=true").training == Training(steps=50, mixed=True)
    assert after("objective.loss=mse").objective == Cjepa(beta=0.01, loss="mse")
    assert parse(Run, {"model": {"encoder": {"heads": 6}}}).model.encoder == Encoder(heads=6, patch_size=8)
    assert parse(Run, {"objective": {"loss": "mse"}}).objective == Cjepa(beta=0.01, loss="mse")


def test_values_of_an_unknown_variant_stay_untouched_too() -> None:
    values: dict[str, object] = {"objective": {"name": "unknown"}}
    apply_overrides(Run, values, ["objective.beta=1"])
    assert values == {"objective": {"name": "unknown"}}


# --- variants and shorthands ----------------------------------------------------------------------------


def test_a_bare_name_selects_a_variant_and_starts_it_afresh() -> None:
    values: dict[str, object] = {"objective": {"name": "cjepa", "beta": 1.0, "loss": "mse"}}
    assert after("objective=ijepa", values=values).objective == Ijepa()
    assert after("objective=cjepa", values=values).objective == Cjepa(beta=1.0, loss="mse")


def test_changing_the_name_drops_only_the_keys_that_the_new_variant_lacks() -> None:
    values: dict[str, object] = {"objective": {"name": "cjepa", "beta": 1.0, "loss": "mse"}}
    assert after("objective.name=ijepa", values=values).objective == Ijepa(loss="mse")
    assert after("objective.name=ijepa").objective == Ijepa()
    ijepa: dict[str, object] = {"objective": "ijepa"}
    assert after("objective.beta=0.5", "objective.name=cjepa", values=ijepa).objective == Cjepa(beta=0.5)


def test_a_bare_value_goes_to_the_shorthand_of_its_group_through_every_level() -> None:
    for override in ("data=pictures", "data.source=pictures", "data.source={}"):
        path = Path(override.partition("=")[2])
        assert after(override).data == Data(source=Folder(path=path))
    assert after("data=demo").data == Data()
    assert after("data=./demo").data.source == Folder(path=Path("demo"))


def test_a_shorthand_keeps_the_other_keys_of_the_same_variant_only() -> None:
    folder: dict[str, object] = {
        "data": {"crop_scale": [0.5, 1.0], "source": {"name": "folder", "path": "a", "test_share": 0.5}}
    }
    assert after("data=b", values=folder).data == Data(
        crop_scale=(0.5, 1.0), source=Folder(path=Path("b"), test_share=0.5)
    )
    assert after("data=demo", values=folder).data == Data(crop_scale=(0.5, 1.0))


def test_a_named_size_is_merged_over_the_present_values() -> None:
    assert after("model.encoder.patch_size=2", "model.encoder=small").model.encoder == Encoder(
        width=384, heads=6, patch_size=2
    )
    assert after("model.encoder=small", "model.encoder.heads=12").model.encoder.heads == 12


def test_shorthands_work_in_files_too() -> None:
    run = parse(Run, {"data": 2024, "model": {"encoder": "small"}, "objective": "ijepa"})
    assert run.data.source == Folder(path=Path("2024"))
    assert run.model.encoder == Encoder(width=384, heads=6, patch_size=8)
    assert run.objective == Ijepa()
    assert parse(Run, {"data": {"source": "demo"}}).data.source == Demo()
    with pytest.raises(InputError, match=r"^data\.source\.crops: must be a whole number"):
        parse(Run, {"data": {"source": {"name": "demo", "crops": "x"}}})


def test_an_optional_group_can_be_set_by_its_keys() -> None:
    assert after("probe.epsilon=1e-2").probe == Projector(epsilon=0.01)
    assert after("probe.epsilon=1e-2", "probe=none").probe is None


# --- YAML -----------------------------------------------------------------------------------------------

TRICKY = [
    "", "null", "none", "yes", "010", "1e-3", "1:30", "0x1f", "2020-01-01", "=", "<<", "a: b", " x ", "\x85",
    "é\n", "1_0", "09", "~", "&a", "!!int", "True", "-", "[a", "a #b", "\u2028", "\t", "'", '"', "\ufeff", "😀",
]  # fmt: skip
words = st.text(max_size=20) | st.sampled_from(TRICKY)
clean_words = words.filter(lambda text: not any(0xD800 <= ord(letter) < 0xE000 for letter in text))
numbers = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
paths = clean_words.filter(lambda text: "\0" not in text).map(Path)
projectors = st.builds(Projector, sizes=st.lists(st.integers(), max_size=3).map(tuple), epsilon=numbers)
patch_sizes = st.integers() | st.tuples(st.integers(), st.integers())
losses = st.sampled_from(["smooth_l1", "mse"])
runs = st.builds(
    Run,
    seed=st.integers(),
    objective=st.builds(Ijepa, loss=losses)
    | st.builds(Cjepa, loss=losses, beta=positive, projector=projectors),
    data=st.builds(
        Data,
        source=st.builds(Folder, path=paths, test_share=numbers) | st.builds(Demo, crops=st.integers()),
        crop_scale=st.tuples(numbers, numbers).map(lambda pair: (min(pair), max(pair))),
    ),
    training=st.builds(
        Training, steps=st.integers(1), mixed=st.booleans(), note=clean_words, out=st.none() | paths,
        optimizer=st.builds(Optimizer, learning_rate=positive, weight_decay=numbers),
    ),
    model=st.builds(Model, encoder=st.builds(Encoder, patch_size=patch_sizes)),
    probe=st.none() | projectors,
)  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("yaml") / "config.yaml"


@pytest.mark.parametrize("name", ["007", "010", "-01", "00.5", "2024"])
def test_a_folder_of_digits_keeps_its_name_in_a_file(file: Path, name: str) -> None:
    for text in (f"data: {name}", f"data: '{name}'", f"data: {{source: {{name: folder, path: '{name}'}}}}"):
        file.write_text(text, encoding="utf-8")
        run = parse(Run, load_yaml(file))
        assert run.data.source == Folder(path=Path(name))
        written = dump_yaml(run)
        assert f"path: '{name}'" in written, "in quotes, for readers that take it for a number"
        file.write_text(written, encoding="utf-8")
        assert parse(Run, load_yaml(file)) == run


@pytest.mark.parametrize("name", ["1e3", "1.50", "True"])
def test_a_name_that_a_file_would_change_is_told_to_be_quoted(file: Path, name: str) -> None:
    file.write_text(f"data: {name}", encoding="utf-8")
    with pytest.raises(InputError, match=r"^data: \S+ is no name; put a name .* in quotes$"):
        parse(Run, load_yaml(file))
    file.write_text(f"data: '{name}'", encoding="utf-8")
    assert parse(Run, load_yaml(file)).data.source == Folder(path=Path(name))


def test_a_number_has_no_zeros_in_front(file: Path) -> None:
    file.write_text("seed: 007", encoding="utf-8")
    with pytest.raises(InputError, match=r'^seed: must be a whole number, got "007"$'):
        parse(Run, load_yaml(file))


@given(runs)
@settings(deadline=None, max_examples=60)
def test_a_config_survives_being_written_and_read(file: Path, run: Run) -> None:
    file.write_text(dump_yaml(run), encoding="utf-8")
    again = parse(Run, load_yaml(file))
    assert again == run
    assert dump_yaml(again) == dump_yaml(run)
    assert differences(run, again) == []
    assert parse(Run, apply_overrides(Run, load_yaml(file), [])) == run


@pytest.mark.parametrize("text", TRICKY)
def test_text_that_looks_like_something_else_stays_text(tmp_path: Path, text: str) -> None:
    run = Run(training=Training(note=text), data=Data(source=Folder(path=Path(text))))
    file = tmp_path / "config.yaml"
    file.write_text(dump_yaml(run), encoding="utf-8")
    assert parse(Run, load_yaml(file)) == run


def test_the_written_config_is_readable_by_people_and_in_declared_order() -> None:
    lines = dump_yaml(Run()).splitlines()
    assert lines[0] == "seed: 0"
    assert "    epsilon: 1.0e-06" in lines
    assert "    sizes: [512, 512]" in lines
    assert [line.split(":")[0] for line in lines if line[0] != " "] == list(Run.model_fields)


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: !!python/object/apply:os.system [ls]", "line 1: the tag .*os.system is not supported"),
        (b"a: !!python/name:os.system", "is not supported"),
        (b"seed: 1\na: ! x", "line 2: the tag ! is not supported"),
        (b"a: !!binary aGk=", "is not supported"),
        (BOMB.encode(), "anchors .* are not supported"),
        (b"a: *b", "aliases .* are not supported"),
        (b"<<: {seed: 1}", "unknown key <<"),
        (b"seed: 1\nmodel: {}\nseed: 2", "line 3: the key seed is given twice"),
        (b"training: {steps: 1, 'steps': 2}", "line 1: the key steps is given twice"),
        (b"- 1", "holds a list"),
        (b"seed", "holds a str"),
        (b"", "is empty"),
        (b"# nothing", "is empty"),
        (b"seed: 1\n---\nseed: 2", "but found another document"),
        (b"? [a]\n: 1", "a key must be a plain name"),
        (b"a: " + b"[" * 5000, "levels of nesting"),
        (b"a: " + b"[" * 50_000, "levels of nesting"),
        (b"{a: " * 400, "levels of nesting"),
        (b"seed: " + b"9" * 10_000, "not readable YAML"),
        (b'a: "\\UFFFFFFFF"', "not readable YAML"),
        (b"seed: 1\n" + b"#" * 1_000_000, "larger than 100000 bytes"),
        (b"a: \xff", "is not UTF-8"),
        (b"a: \x00", "not readable YAML"),
        (b"\tseed: 1", "line 1: "),
        (b"seed: [1\n", "line 2: "),
        (b"seed: 2020-01-01", 'seed: must be a whole number, got "2020-01-01"'),
    ],
)
def test_a_file_with_anything_but_plain_data_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        parse(Run, load_yaml(file))
    assert len(str(caught.value)) < 500 + len(str(file))


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(InputError, match="cannot read"):
            load_yaml(path)


def test_a_byte_order_mark_and_crlf_are_read(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(b"\xef\xbb\xbfseed: 3\r\nobjective: ijepa\r\n")
    assert parse(Run, load_yaml(file)) == Run(seed=3, objective=Ijepa())


GOOD = dump_yaml(Run(data=Data(source=Folder(path=Path("images"))))).encode()


signs = st.sampled_from([bytes([sign]) for sign in b"&*!:[{-?|>%\"'#"])
mutations = st.tuples(st.integers(0, len(GOOD) - 1), st.binary(max_size=4) | signs, st.integers(0, 4))


@given(st.lists(mutations, min_size=1, max_size=4))
@settings(deadline=None, max_examples=150)
def test_mutated_files_are_read_or_refused_and_nothing_else(file: Path, changes: list[tuple[int, bytes, int]]) -> None:
    content = GOOD
    for position, inserted, removed in changes:
        content = content[:position] + inserted + content[position + removed :]
    file.write_bytes(content)
    try:
        run = parse(Run, load_yaml(file))
    except InputError:
        return
    assert parse(Run, run.model_dump(mode="json")) == run


leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["cjepa", "demo", "small"])
)
keys_ = st.sampled_from(
    ["seed", "name", "objective", "data", "source", "path", "model", "encoder", "probe", "sizes", "x"]
)
trees = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys_, inner, max_size=4), max_leaves=12
)


@given(
    st.dictionaries(keys_, trees, max_size=5),
    st.lists(st.tuples(keys_, st.lists(keys_, max_size=2), st.text(max_size=6))),
)
@settings(deadline=None, max_examples=120)
def test_any_values_and_overrides_are_read_or_refused_and_nothing_else(
    values: dict[str, object], overrides: list[tuple[str, list[str], str]]
) -> None:
    arguments = [f"{'.'.join([first, *rest])}={text}" for first, rest, text in overrides]
    try:
        run = parse(Run, apply_overrides(Run, values, arguments))
    except InputError:
        return
    assert isinstance(run, Run)


# --- differences, help, schema --------------------------------------------------------------------------


def test_differences_name_each_key_with_both_values() -> None:
    new = after("training.steps=256", "data=pictures", "training.note='50'")
    assert differences(Run(training=Training(steps=128, note="a")), new) == [
        "data.source.name: demo -> folder",
        "data.source.crops: 100 -> (not set)",
        "training.steps: 128 -> 256",
        "training.note: a -> '50'",
        "data.source.path: (not set) -> pictures",
        "data.source.test_share: (not set) -> 0.1",
    ]


def test_every_key_is_documented_with_type_default_and_variant() -> None:
    rows = {(row.key, row.default): row for row in describe_keys(Run)}
    assert list(rows)[:2] == [("seed", "0"), ("model.encoder", "")]
    whole, cjepa, short = "whole number", "(objective=cjepa or sigreg)", "name or short for data.source.path"
    expected = [
        KeyHelp("seed", "whole number", "0", "Seed of every draw.", ()),
        KeyHelp("model.encoder", "named size", "", "The encoder.", ()),
        KeyHelp("model.encoder.width", "whole number > 0", "192", "Features of a patch embedding.", ()),
        KeyHelp("model.encoder.patch_size", f"{whole} or [{whole}, {whole}]", "8", "Side of a patch in pixels.", ()),
        KeyHelp("objective", "name", "cjepa", "What is minimised.", ("ijepa", "cjepa", "sigreg")),
        KeyHelp("objective.loss", "name", "smooth_l1", "Prediction loss.", ("smooth_l1", "mse")),
        KeyHelp("objective.beta", "number >= 0", "0.01", "Weight of the VICReg term. (objective=cjepa)", ()),
        KeyHelp("objective.projector.sizes", f"list of: {whole}", "[512, 512]", f"Widths of the layers. {cjepa}", ()),
        KeyHelp("objective.slices", "whole number >= 1 or null", "null", "Random directions. (objective=sigreg)", ()),
        KeyHelp("data", "short for data.source", "", "Images.", ()),
        KeyHelp("data.source", short, "demo", "Where images come from.", ("folder", "demo")),
        KeyHelp("data.source.path", "path", "(required)", "The folder. (data.source=folder)", ()),
        KeyHelp("training.steps", "whole number > 0", "50", "Training steps.", ()),
        KeyHelp("training.out", "path or null", "null", "Where to write.", ()),
    ]  # fmt: skip
    for row in expected:
        assert rows[row.key, row.default] == row
    assert len(rows) == len(describe_keys(Run)), "each key once"
    assert all(row.text for row in rows.values())


def test_the_documented_keys_are_those_that_can_be_set() -> None:
    for row in describe_keys(Run):
        chosen = row.text.rpartition("(")[2].removesuffix(")") if row.text.endswith(")") else "seed=0"
        if row.default in ("", "(required)", "null"):
            continue
        chosen = chosen.partition(" or ")[0]
        with_variant = [chosen.replace("data.source=folder", "data=x"), f"{row.key}={row.default}"]
        assert isinstance(after(*with_variant), Run), row


def test_the_schema_knows_every_part() -> None:
    schema = json_schema(Run)
    assert set(schema["properties"]) == set(Run.model_fields)
    assert schema["$defs"]["Cjepa"]["properties"]["beta"]["description"] == "Weight of the VICReg term."
    assert schema["additionalProperties"] is False


def test_nearest_finds_typos_prefixes_and_nothing_unlike() -> None:
    presets = ["demo", "cifar10-tiny", "imagenet-small", "imagenet-base"]
    assert nearest("cifar10", presets) == "cifar10-tiny"
    assert nearest("imagnet-bse", presets) == "imagenet-base"
    assert nearest("zebra", presets) is None
    assert nearest("demo", []) is None


def test_a_group_cannot_be_null_in_a_file() -> None:
    with pytest.raises(InputError, match=r"^training: must be a group of keys, got null$"):
        parse(Run, {"training": None})


def test_infinite_defaults_never_pass() -> None:
    with pytest.raises(InputError, match=r"crop_scale\[1\]: must be a finite number"):
        parse(Run, {"data": {"crop_scale": [0.0, math.inf]}})
