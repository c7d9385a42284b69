"""What is built is what is needed: the archives' contents, and a wheel that works in an empty environment."""

import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tests.test_runs import SMALL_DEMO

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "cjepa"


def wanted() -> set[str]:
    """Every file of the package that is not left behind by Python, relative to its folder."""
    files = {path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    return {path.relative_to(PACKAGE).as_posix() for path in files}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that is built from it, as pip would."""
    pytest.importorskip("hatchling", reason="hatchling is not installed")
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(out)]
    subprocess.run([*build, "-t", "sdist"], cwd=ROOT, check=True, capture_output=True)
    [sdist] = out.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(out / "unpacked", filter="data")
    [unpacked] = (out / "unpacked").iterdir()
    subprocess.run([*build, "-t", "wheel"], cwd=unpacked, check=True, capture_output=True)
    [wheel] = out.glob("*.whl")
    return sdist, wheel


def test_the_sdist_holds_the_package_and_its_papers(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        names = {"/".join(name.split("/")[1:]) for name in archive.getnames()}
    papers = {"README.md", "CHANGELOG.md", "LICENSE", "CITATION.cff", "pyproject.toml", "PKG-INFO", ".gitignore"}
    assert names == papers | {f"src/cjepa/{name}" for name in wanted()}


def test_the_wheel_holds_the_package_and_the_licence(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as archive:
        names = set(archive.namelist())
        information = {name for name in names if ".dist-info/" in name}
        [metadata] = (archive.read(name).decode() for name in information if name.endswith("/METADATA"))
    assert names - information == {f"cjepa/{name}" for name in wanted()}
    kinds = {name.split(".dist-info/")[1] for name in information}
    assert kinds == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}
    needed = {"presets/demo.yaml", "export/templates/model_card.md.j2", "py.typed"}
    assert needed <= wanted()
    for extra in ("demo", "hub", "onnx", "parquet", "timm", "transformers"):
        assert f"Provides-Extra: {extra}\n" in metadata


def test_heavy_dependencies_are_extras(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as archive:
        [name] = (name for name in archive.namelist() if name.endswith("/METADATA"))
        lines = archive.read(name).decode().split("\n")
    always = {
        line.split(": ")[1].split(">")[0] for line in lines if line.startswith("Requires-Dist: ") and ";" not in line
    }
    heavy = {"transformers", "timm", "onnx", "onnxruntime", "onnxscript", "pyarrow", "huggingface-hub", "scikit-image"}
    assert always.isdisjoint(heavy)
    assert {"torch", "safetensors", "jinja2"} <= always


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an empty environment with the wheel; dependencies are those of this environment.

    They are seen through a .pth file, whose own .pth files do not count, so that no editable install is.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--disable-pip-version-check"]
    offline = ["--no-index", "--no-deps", "--ignore-installed", "--quiet", str(built[1])]
    subprocess.run([*install, *offline], check=True, capture_output=True)
    where = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    answer = subprocess.run([python, "-c", where], check=True, capture_output=True, text=True)
    (Path(answer.stdout.strip()) / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python


def run(python: Path, *arguments: object, cwd: Path) -> str:
    command = [str(python), "-I", "-m", "cjepa", *map(str, arguments)]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_installed_wheel_runs_the_demos_first_steps(installed: Path, tmp_path: Path) -> None:
    pytest.importorskip("skimage", reason="scikit-image is not installed")
    where = [str(installed), "-I", "-c", "import cjepa; print(cjepa.__file__)"]
    place = subprocess.run(where, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()
    assert Path(place).is_relative_to(installed.parents[1]), "the wheel, and no other copy, is what runs"
    assert "demo" in run(installed, "config", "list", cwd=tmp_path)
    assert "verdict: " in run(installed, "pretrain", "demo", *SMALL_DEMO, "--out", "run", cwd=tmp_path)
    assert "parity: " in run(installed, "export", "run", "--out", "out", cwd=tmp_path)
    assert (tmp_path / "out" / "README.md").read_text().startswith("---\n"), "the template is in the wheel"


def test_the_command_is_installed(installed: Path, tmp_path: Path) -> None:
    command = installed.with_name("cjepa.exe" if sys.platform == "win32" else "cjepa")
    result = subprocess.run([str(command), "--version"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("cjepa ")
