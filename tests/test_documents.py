"""What the documents say about the code is there: functions, files, links, config keys, thresholds, versions."""

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import cjepa
from cjepa.build import footprint_of
from cjepa.cli import app
from cjepa.cli_arguments import variant
from cjepa.config import RunConfig, describe_keys
from cjepa.config.presets import preset_facts, preset_names, resolve
from cjepa.evaluation import EvaluationConfig
from cjepa.export import ExportConfig
from cjepa.runs.sharding import data_of
from cjepa.training import health

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "cjepa"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
SECTIONS = tuple(RunConfig.model_fields)


def each(documents: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("document", documents, ids=lambda path: path.name)


def code_spans(document: Path) -> list[str]:
    """Inline code; fenced and indented blocks are left out."""
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    text = "\n".join("" if line.startswith("    ") else line for line in text.split("\n"))
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


def found(path: str) -> Path | None:
    """A file that a document names, relative to the package or to the repository."""
    return next((base / path for base in (PACKAGE, ROOT) if (base / path).exists()), None)


def defined(path: Path) -> set[str]:
    """Functions, classes, methods and constants of a module: f, C, C.f, X."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{member.name}" for member in node.body if isinstance(member, ast.FunctionDef)}
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def missing_references(spans: list[str]) -> Iterator[str]:
    for span in spans:
        match = re.fullmatch(r"([\w/.-]+\.(?:py|md|txt|toml|cff)|[a-z_/-]+/)(?::([\w.]+))?", span)
        if match is None:
            continue
        path = found(match[1])
        if path is None or (match[2] and match[2] not in defined(path)):
            yield span


@each([path for path in DOCUMENTS if path.name not in ("export.md", "performance.md")])  # which name files alone
def test_files_and_functions_exist(document: Path) -> None:
    assert list(missing_references(code_spans(document))) == []


def test_a_missing_function_is_noticed() -> None:
    spans = ["objectives/vicreg.py:similarity", "objectives/vicreg.py:nothing", "objectives/none.py", "models/", "x/"]
    assert list(missing_references(spans)) == ["objectives/vicreg.py:nothing", "objectives/none.py", "x/"]


@each(DOCUMENTS)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        file, _, heading = target.partition("#")
        path = document.parent / file if file else document
        assert path.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}, target


@each(DOCUMENTS)
def test_config_keys_and_values_are_accepted(document: Path) -> None:
    keys = {row.key for row in describe_keys(RunConfig)}
    for span in code_spans(document):
        key = rf"(?:{'|'.join(SECTIONS)})[.=](?!json|safetensors|onnx)"
        words = [word for word in span.split() if re.match(key, word)]
        for key in {word.partition("=")[0] for word in words if "." in word.partition("=")[0]}:
            assert any(known == key or known.startswith(f"{key}.") for known in keys), span
        changes = [word for word in words if "=" in word]
        if changes:
            resolve("imagenet-vit-b", changes)


def calls_in(document: Path) -> Iterator[list[str]]:
    """The words behind `cjepa` of every call in the code of a document, or of every one that a preset names."""
    text = document.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^# (?:Command|Evaluate): +(.+)$", text, re.MULTILINE)  # of a preset
    if document.suffix == ".md":
        blocks = [block for kind, block in re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL) if kind in ("", "sh")]
        lines = [*"\n".join(blocks).splitlines(), *re.findall(r"^ {4}(.+)$", text, re.MULTILINE), *code_spans(document)]
    for line in lines:
        try:
            words = shlex.split(re.split(r", (?:or|where) |\|", line)[0], comments=True)
        except ValueError:  # an apostrophe of a code block that is no shell's
            continue
        if "cjepa" in words:
            called = words[words.index("cjepa") + 1 :]
        elif words and words[-1:] != ["scripts/torchrun.sh"] and any(word.startswith("scripts/") for word in words):
            place = next(index for index, word in enumerate(words) if word.startswith("scripts/"))
            called = ["pretrain", *words[place + 1 :]]
        else:
            continue
        if called and "..." not in called and not any(word.startswith("[") for word in called):
            yield [{"PRESET": "small-96", "NAME": "knn", "N": "7"}.get(word, word) for word in called]


def refuse_wrong_call(words: list[str]) -> None:
    """Raises what the command line would say of commands, options and keys; nothing is run."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        assert words[0] in command.commands or words == ["--help"], f"no command {words[0]}"
        if words == ["--help"]:
            return
        command, words = command.commands[words[0]], words[1:]
        if not words and hasattr(command, "commands"):
            return  # the name of a group alone
    if "--help" in words:
        return
    try:
        given = command.make_context(command.name, list(words)).params
    except Exception as error:
        # A sentence may leave out what does not matter there. typer may have its own copy of click's errors.
        if type(error).__name__ in ("MissingParameter", "BadOptionUsage"):
            return
        raise
    changes = given.get("changes") or []
    match command.name:
        case "pretrain" | "plan" | "show" if given["origin"] in preset_names():
            resolve(given["origin"], changes)
        case "demo":
            resolve("demo", changes)
        case "evaluate":
            keys = [*changes, *(["data=DIR"] if given["name"] in NEED_DATA and not changes else [])]
            variant("evaluation", EvaluationConfig, given["name"], keys)
        case "export":
            variant("format", ExportConfig, given["name"], changes)
        case "shard":
            data_of(given["images"], changes)


NEED_DATA = ("segmentation", "patch-retrieval", "counting", "distance", "detection", "video")


@each([*DOCUMENTS, *sorted((PACKAGE / "presets").glob("*.yaml"))])
def test_calls_have_commands_options_and_keys_that_exist(document: Path) -> None:
    calls = list(calls_in(document))
    assert calls or document.suffix == ".md"
    for words in calls:
        try:
            refuse_wrong_call(words)
        except Exception as error:
            pytest.fail(f"cjepa {' '.join(words)}: {error}")


@pytest.mark.parametrize(
    "call",
    [
        "pretrian small-96",
        "pretrain small-96 data=DIR --output RUN",
        "pretrain small-96 data=DIR training.epoch=3",
        "evaluate segmentation RUN data=DIR rates=3",
        "export RUN --format onnx opsets=20 --out DIR",
    ],
)
def test_a_wrong_call_is_noticed(call: str) -> None:
    with pytest.raises(Exception, match=r"pretrian|output|epoch|rates|opset"):
        refuse_wrong_call(call.split())


@pytest.mark.parametrize("name", preset_names())
def test_what_a_preset_reached_is_in_the_results(name: str) -> None:
    measured = "".join((ROOT / "docs" / f"{each}.md").read_text(encoding="utf-8") for each in ("results", "evaluation"))
    told = re.findall(r"\d+\.\d+", preset_facts(name)["Result"])
    assert [number for number in told if f" {number} " not in measured] == []


def test_thresholds_are_those_of_the_verdict() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| ([0-9.]+) \|$", (ROOT / "docs" / "health.md").read_text(), re.MULTILINE)
    constants = {name: value for name, value in vars(health).items() if name.isupper()}
    assert {name: float(value) for name, value in rows} == constants


def test_the_needs_of_presets_are_those_of_the_formulas() -> None:
    """The table of docs/scale.md: numbers in millions, GiB, GFLOP and MB, of a run in bfloat16 on a GPU."""
    text = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| `(imagenet-[^`]+)` \| (\d[^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", text, re.M
    )
    assert len(rows) == 3
    for command, *told in rows:
        preset, *changes = command.split()
        needs = footprint_of(resolve(preset, [*changes, "training.precision=bfloat16"]), "cuda")
        state = 4 * (3 * needs.learned + needs.average) / 2**30
        values = needs.learned / 1e6, needs.average / 1e6, state, needs.operations / 1e9, needs.activations / 1e6
        assert told == [f"{value:.{digits}f}" for value, digits in zip(values, (0, 0, 1, 0, 0), strict=True)]


def requirements(name: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    pairs = [re.split(r"={2,3}", line) for line in lines if line and not line.startswith("#")]
    return {normalised(package): version for package, version in pairs}


def normalised(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def floors() -> dict[str, str]:
    """The lowest version of every dependency and of every extra, by pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    pairs = [line.split(">=") for line in project["dependencies"] + extras if not line.startswith("cjepa[")]
    return {normalised(package): version for package, version in pairs}


def as_numbers(version: str) -> tuple[int, ...]:
    parts = [int(part) for part in re.match(r"[0-9.]+", version)[0].strip(".").split(".")]  # type: ignore[index]
    return (*parts, *[0] * (4 - len(parts)))


def test_the_floor_is_what_the_package_admits() -> None:
    wanted, listed = floors(), requirements("floor.txt")
    assert listed.keys() == wanted.keys()
    differing = {name for name in wanted if as_numbers(listed[name]) != as_numbers(wanted[name])}
    assert not differing


def test_the_constraints_satisfy_the_floors() -> None:
    pinned = requirements("constraints.txt")
    optional = {"wandb"}  # not a part of the tested environment
    for name, lowest in floors().items():
        if name not in optional:
            assert as_numbers(pinned[name]) >= as_numbers(lowest), name


def test_one_version_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert project["version"] == cjepa.__version__ == citation["version"]
    assert f"## {cjepa.__version__}" in (ROOT / "CHANGELOG.md").read_text()
