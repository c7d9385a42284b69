"""The agenda for a GPU, tried with a toy on the CPU; budgets, failures and continuing with commands that do nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, throughput
from benchmarks.gpu import MORE, Piece, Results, agenda, call, report
from benchmarks.step import Bench
from benchmarks.throughput import NAMES, WAYS, OurCase, case_of, fitting, measure, utilisation
from cjepa.build import footprint_of

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


def piece(name: str, code: str, **more: object) -> Piece:
    return Piece(name, ("-c", code), **{"seconds": 30.0, **more})


@pytest.mark.parametrize("way", ["cjepa", "lightly"])
def test_a_row_of_every_way(way: str) -> None:
    if way == "lightly":
        pytest.importorskip("lightly")
        pytest.importorskip("timm")
    row = measure(case_of("tiny", small=True), way, CPU, 2)
    assert row["images_per_second"] > 0
    assert row["utilisation"] is None  # nobody states a CPU's peak
    assert row["synchronisations_per_step"]["aten::_local_scalar_dense"] >= 1  # the loss is read
    config = OurCase(**case_of("tiny", small=True).__dict__).config
    assert row["operations_per_image"] == footprint_of(config, "cpu").operations


def test_lightly_has_the_same_sizes() -> None:
    pytest.importorskip("lightly")
    pytest.importorskip("timm")
    case = case_of("tiny", small=True)
    bench = Bench(OurCase(**case.__dict__), CPU)
    theirs = throughput.Lightly(case, CPU, bench.batch)
    learned = [p for part in (theirs.student, theirs.predictor) for p in part.parameters() if p.requires_grad]
    unused = theirs.student.mask_token.numel()
    ours = sum(parameter.numel() for parameter in bench.trainer.parameters.values())
    assert sum(parameter.numel() for parameter in learned) - unused == ours
    first = theirs.step()
    assert 0 < first < 10
    assert theirs.step() != first


def test_the_case_of_the_peers_has_no_regulariser() -> None:
    config = OurCase(**case_of("base").__dict__).config
    assert config.objective.name == "ijepa"
    assert (config.model.encoder.width, config.model.predictor.depth, config.data.image_size) == (768, 6, 224)
    assert case_of("huge").encoder.patch_size == 14


def test_the_batch_is_a_power_of_two_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of("large")
    monkeypatch.setattr(throughput, "device_memory", lambda _: 64e9)
    monkeypatch.setattr(throughput, "resident_memory", lambda: 0.0)
    batch = fitting(case, CPU)
    needs = footprint_of(case.config, "cpu")
    assert batch in (16, 32, 64, 128)
    assert needs.memory(2 * batch, 2 * batch) > 0.7 * 64e9


def test_utilisation_is_operations_over_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    needs = footprint_of(case_of("base").config, "cuda")
    assert utilisation(needs, 0.5 * 989e12 / needs.operations, torch.device("cuda")) == pytest.approx(0.5)
    assert utilisation(needs, 1.0, CPU) is None


def test_everything_is_on_the_agenda() -> None:
    pieces = agenda("cuda", False, Path("public"), ["cifar10=DIR"])
    names = [each.name for each in pieces]
    assert names[0] == "tests"
    assert {f"throughput {size} {way}" for size in NAMES for way in WAYS} < set(names)
    assert names[-2:] == ["public step", "study"]
    assert all(each.seconds < 600 for each in pieces)
    assert pieces[-1].command[-2:] == ("--data", "cifar10=DIR")
    assert pieces[-1].continues


def test_a_call_does_what_fits_and_the_next_one_goes_on(tmp_path: Path) -> None:
    pieces = [
        piece("first", "print('{\"size\": 1}')", is_row=True),
        piece("absent", "", needs=("no_such_module",)),
        piece("second", "print('words')"),
    ]
    path = tmp_path / "gpu.json"
    assert call(pieces, Results(path), 40.0, False) == MORE or Results(path).pieces["second"]["state"] == "done"
    assert Results(path).pieces["first"]["row"] == {"size": 1}
    assert Results(path).pieces["absent"]["state"] == "skipped"
    assert call(pieces, Results(path), 60.0, False) == 0
    assert Results(path).pieces["second"]["said"] == "words\n"


def test_a_budget_that_is_spent_leaves_the_rest(tmp_path: Path) -> None:
    pieces = [piece("first", ""), piece("second", "", seconds=59.99999)]
    assert call(pieces, Results(tmp_path / "gpu.json"), 60.0, False) == MORE
    assert set(Results(tmp_path / "gpu.json").pieces) == {"first"}


def test_a_failure_is_kept_and_not_tried_again_unless_asked(tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "gpu.json"
    code = f"import pathlib, sys; p = pathlib.Path({str(mark)!r}); sys.exit(0) if p.exists() else sys.exit('no memory')"
    pieces = [piece("fails", code), piece("works", "")]
    assert call(pieces, Results(path), 99.0, False) == 1
    assert "no memory" in Results(path).pieces["fails"]["why"]
    assert Results(path).pieces["works"]["state"] == "done"
    mark.touch()
    assert call(pieces, Results(path), 99.0, False) == 1
    assert call(pieces, Results(path), 99.0, True) == 0


def test_what_takes_too_long_is_stopped(tmp_path: Path) -> None:
    assert call([piece("hangs", "import time; time.sleep(60)", seconds=1.0)], Results(tmp_path / "g"), 9.0, False) == 1


def test_what_continues_goes_on_in_the_next_call(tmp_path: Path) -> None:
    pieces = [piece("study", f"raise SystemExit({MORE})", continues=True)]
    for _ in range(2):
        assert call(pieces, Results(tmp_path / "gpu.json"), 60.0, False) == MORE


def test_the_whole_agenda_with_a_toy(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--toy", "--device", "cpu", "--out", str(out)]
    # Compiling needs a C++ compiler and most of a minute on a CPU; the other two ways are tried.
    stored = {"pieces": {"throughput tiny cjepa-compiled": {"state": "skipped", "why": "in a test"}}}
    out.write_text(json.dumps(stored))
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    found = Results(out).pieces
    assert found["throughput tiny cjepa"]["row"]["images_per_second"] > 0
    assert "| tiny | cjepa | 4 | " in done.stdout
    assert report(Results(out)) in done.stdout


def test_the_committed_result_can_be_reported() -> None:
    if not gpu.RESULTS.exists():
        pytest.skip("not measured yet: make gpu")
    assert report(Results(gpu.RESULTS))
