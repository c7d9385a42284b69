import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cjepa.training import environment
from cjepa.training.environment import describe_environment


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@localhost"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_it_is_json_and_names_what_matters() -> None:
    described = json.loads(json.dumps(describe_environment(), allow_nan=False))
    assert described["python"] == sys.version.split()[0]
    assert described["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert described["packages"]["cjepa"]
    assert described["cpu"]["threads"] == torch.get_num_threads()
    assert described["cpu"]["cores"] > 0
    assert described["cpu"]["model"] is not None
    assert ("avx512_bf16" in described["cpu"]["instructions"]) == bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def test_no_environment_variable_gets_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "s3cr3t-value")
    monkeypatch.setenv("HOME", "/home/s3cr3t-value")
    assert "s3cr3t-value" not in json.dumps(describe_environment())


@pytest.mark.parametrize(
    ("argument", "kept"),
    [
        ("data=photos", "data=photos"),
        ("logging.wandb=birds", "logging.wandb=birds"),
        ("api_key=s3cr3t", "api_key=***"),
        ("--hub-token=s3cr3t", "--hub-token=***"),
        ("wandb.APIKEY=s3cr3t", "wandb.APIKEY=***"),
        ("my_password=s3cr3t with spaces", "my_password=***"),
        ("data=https://me:s3cr3t@example.org/photos", "data=https://***@example.org/photos"),
        ("data=https://example.org/a@b", "data=https://example.org/a@b"),
    ],
)
def test_command_line_without_credentials(monkeypatch: pytest.MonkeyPatch, argument: str, kept: str) -> None:
    monkeypatch.setattr(sys, "argv", ["/home/me/bin/cjepa", "pretrain", argument])
    assert describe_environment()["command"] == ["cjepa", "pretrain", kept]


def test_no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert describe_environment()["commit"] is None


class TestCommit:
    @pytest.fixture
    def package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
        package = tmp_path / "src" / "cjepa"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("")
        (tmp_path / "readme").write_text("")
        return package

    def test_no_repository(self, package: Path) -> None:
        assert environment._commit(package) is None

    def test_repository_that_does_not_track_the_package(self, package: Path, tmp_path: Path) -> None:
        git(tmp_path, "init")
        git(tmp_path, "add", "readme")
        git(tmp_path, "commit", "-m", "readme")
        assert environment._commit(package) is None

    def test_repository_without_commit(self, package: Path, tmp_path: Path) -> None:
        git(tmp_path, "init")
        git(tmp_path, "add", ".")
        assert environment._commit(package) is None

    def test_checkout(self, package: Path, tmp_path: Path) -> None:
        git(tmp_path, "init")
        git(tmp_path, "add", ".")
        git(tmp_path, "commit", "-m", "all")
        head = git(tmp_path, "rev-parse", "HEAD")
        assert environment._commit(package) == {"hash": head, "changed": False}
        (package / "__init__.py").write_text("changed")
        assert environment._commit(package) == {"hash": head, "changed": True}
