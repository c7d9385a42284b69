"""The agenda for a GPU, tried with a toy on the CPU; budgets, failures and continuing with commands that do nothing."""

import json
import re
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import gpu, throughput
from benchmarks.gpu import BUDGET, MORE, Piece, Results, agenda, call, merge, report
from benchmarks.peer_steps import Lightly
from benchmarks.public_step import Public
from benchmarks.step import operations_of, typical_batch
from benchmarks.throughput import NAMES, WAYS, OurCase, case_of, fitting, measure, synchronisations, utilisation
from cjepa.build import _fitted, build_trainer, footprint_of
from cjepa.models.kernels import has_fast_bfloat16
from tests.benchmarks.test_benchmark_peers import public as public

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
TOY = case_of("tiny", small=True)


def piece(name: str, code: str, expected: float = 1.0, limit: float = 30.0, **more: Any) -> Piece:
    return Piece(name, ("-c", code), expected, limit, **more)


def row_of(size: str, way: str, rate: float, **more: Any) -> dict[str, Any]:
    return {
        "size": size,
        "way": way,
        "device": "H100",
        "batch_size": 64,
        "bursts": 5,
        "images_per_second": {"median": rate, "low": rate, "high": rate},
        "utilisation": 0.5,
        "of_the_fastest_product": 0.6,
        "peak_memory": 7e9,
        "synchronisations_per_step": {"cudaStreamSynchronize": 0.0},
        **more,
    }


@pytest.mark.parametrize("way", ["cjepa", "lightly"])
def test_a_row_of_every_way(way: str) -> None:
    if way == "lightly":
        pytest.importorskip("lightly")
        pytest.importorskip("timm")
    first, last = measure(TOY, way, CPU, 3)
    assert first["images_per_second"]["low"] > 0
    assert (first["bursts"], first["steps_of_a_burst"]) == (3, 1)
    assert first["utilisation"] is None  # nobody states a CPU's peak
    assert first["of_the_fastest_product"] > 0
    if has_fast_bfloat16(CPU):  # else a product may be slower than all that a step does besides
        assert first["of_the_fastest_product"] < 1
    assert first["synchronisations_per_step"] is None  # told before the profiler is tried
    assert last["synchronisations_per_step"]["aten::_local_scalar_dense"] >= 1  # the loss is read
    assert last | {"synchronisations_per_step": None} == first
    masks = typical_batch(TOY).masks
    assert last["operations_per_image"] == operations_of(TOY, masks)
    longest = footprint_of(OurCase(**TOY.__dict__).config, "cpu").operations
    assert operations_of(TOY, masks) < longest, "operations of the step that is timed, which is of median length"


def test_the_public_step_is_a_way(public: Public, tmp_path: Path) -> None:
    *_, row = measure(TOY, "public", CPU, 1, tmp_path)
    assert row["images_per_second"]["median"] > 0


def test_lightly_has_the_same_sizes() -> None:
    pytest.importorskip("lightly")
    pytest.importorskip("timm")
    case = OurCase(**TOY.__dict__)
    theirs = Lightly(case, CPU, typical_batch(case))
    learned = [p for part in (theirs.student, theirs.predictor) for p in part.parameters() if p.requires_grad]
    unused = theirs.student.mask_token.numel()
    ours = sum(parameter.numel() for parameter in build_trainer(case.config, 100, CPU).parameters.values())
    assert sum(parameter.numel() for parameter in learned) - unused == ours
    first = theirs.step()
    assert 0 < first < 10
    assert theirs.step() != first


@pytest.mark.skipif(find_spec("stable_pretraining") is None, reason="stable-pretraining is not installed")
def test_stable_pretraining_has_the_same_sizes_and_masks() -> None:
    # In a process of its own: it changes logging and Lightning when it is imported.
    code = """
import torch
from benchmarks.peer_steps import StablePretraining
from benchmarks.step import typical_batch
from benchmarks.throughput import OurCase, case_of
from cjepa.build import build_trainer

case, cpu = OurCase(**case_of("tiny", small=True).__dict__), torch.device("cpu")
batch = typical_batch(case)
theirs = StablePretraining(case, cpu, batch)
sizes = {name: parameter.numel() for name, parameter in theirs.model.named_parameters() if parameter.requires_grad}
positions = sizes["encoder.student.vit.pos_embed"]  # learned
queries = sizes["predictor.query_proj.weight"] + sizes["predictor.query_proj.bias"]  # of nothing: all are masked
ours = sum(parameter.numel() for parameter in build_trainer(case.config, 100, cpu).parameters.values())
assert sum(sizes.values()) - positions - queries == ours, (sizes, ours)
teacher = theirs.model.encoder.teacher.vit.norm.weight
before, first = teacher.clone(), theirs.step()
assert 0 < first < 10
assert theirs.step() != first
assert not torch.equal(teacher, before)
theirs.given.masks = batch.masks
output = theirs.model(batch.images.float() / 255)
assert output.predictions.shape[:2] == batch.masks.targets.flatten(1).shape
assert output.num_context == batch.masks.context.shape[1]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("way", ["lightly", "public"])
def test_a_way_that_lacks_something_says_so(way: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("benchmarks.peer_steps.find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["throughput", "--way", way, "--device", "cpu", "--toy"])
    with pytest.raises(SystemExit):
        throughput.main()
    assert {"lightly": "lightly, timm is not installed", "public": "--reference"}[way] in capsys.readouterr().err


def test_a_batch_that_does_not_fit_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    original = throughput.step_of

    def step_of(case: Any, *arguments: Any) -> Any:
        if case.batch_size > 2:
            raise torch.OutOfMemoryError("no memory")
        return original(case, *arguments)

    monkeypatch.setattr(throughput, "step_of", step_of)
    *_, row = measure(TOY, "cjepa", CPU, 1)
    assert row["batch_size"] == 2


def test_the_case_of_the_peers_has_no_regulariser() -> None:
    config = OurCase(**case_of("base").__dict__).config
    assert config.objective.name == "ijepa"
    assert (config.model.encoder.width, config.model.predictor.depth, config.data.image_size) == (768, 6, 224)
    assert case_of("huge").encoder.patch_size == 14


def test_the_batch_is_a_power_of_two_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of("large")
    monkeypatch.setattr(throughput, "device_memory", lambda _: 64e9)
    monkeypatch.setattr(throughput, "occupied_memory", lambda _: 0.0)
    batch = fitting(case, CPU)
    needs = footprint_of(case.config, "cpu")
    assert batch in (16, 32, 64, 128)
    assert needs.memory(2 * batch, 2 * batch) > 0.7 * 64e9


def test_utilisation_is_operations_over_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    assert utilisation(10**11, 0.5 * 989e12 / 10**11, torch.device("cuda")) == pytest.approx(0.5)
    assert utilisation(10**11, 1.0, CPU) is None


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 3090", None),
    ],
)
def test_the_peak_is_that_of_the_very_device(name: str, peak: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    found = utilisation(1, 1e12, torch.device("cuda"))
    assert found == (None if peak is None else pytest.approx(1e12 / peak))


@pytest.mark.parametrize("memory", [16.0, 23.6, 40.0, 79.1, 139.8])
def test_a_batch_that_fits_is_not_taken_in_parts(memory: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a GPU: else the trainer would be measured with another step than the one that its row names."""
    for module in ("benchmarks.throughput", "cjepa.build"):
        monkeypatch.setattr(f"{module}.device_memory", lambda _: memory * 2**30)
    for size in NAMES:
        case = OurCase(**case_of(size).__dict__)
        case = replace(case, batch_size=fitting(case, torch.device("cuda")))
        assert _fitted(case.config, torch.device("cuda")).micro_batch == case.batch_size


def test_waits_are_those_of_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU a profiler that ends waits itself, and reading a number that is on the host waits for nothing."""
    calls: list[str] = []

    class Profile:
        def __init__(self, activities: object) -> None:
            calls.clear()

        def __enter__(self) -> "Profile":
            return self

        def __exit__(self, *_: object) -> None:
            calls.append("cudaDeviceSynchronize")

        def key_averages(self) -> list[SimpleNamespace]:
            return [SimpleNamespace(key=name, count=calls.count(name)) for name in set(calls)]

    def step() -> None:
        calls.extend(["cudaStreamSynchronize", "aten::_local_scalar_dense", "aten::_local_scalar_dense"])

    monkeypatch.setattr(throughput, "profile", Profile)
    found = synchronisations(step, torch.device("cuda"))
    assert {name: count for name, count in found.items() if count} == {"cudaStreamSynchronize": 1.0}
    assert synchronisations(step, CPU) == {"aten::_local_scalar_dense": 2.0}


def test_everything_is_on_the_agenda() -> None:
    pieces = agenda("cuda", False, Path("public"), ["cifar10=DIR"])
    names = [each.name for each in pieces]
    assert len(names) == len(set(names)) == 3 + len(NAMES) * len(WAYS)
    assert {f"throughput {size} {way}" for size in NAMES for way in WAYS} < set(names)
    assert all(0 < each.expected < each.limit < 600 for each in pieces)
    assert pieces[-1].command[-2:] == ("--data", "cifar10=DIR")
    assert pieces[-1].continues
    assert not [
        each.absent for each in pieces if "lightly" not in each.name and "stable" not in each.name and each.absent
    ]


def test_what_tells_most_fits_into_one_call() -> None:
    names, seconds = [], 0.0
    for each in agenda("cuda", False, Path("public"), []):
        seconds += each.expected
        names += [each.name] if seconds <= 540 else []
    assert names[:4] == ["tests", "throughput base cjepa", "throughput base cjepa-compiled", "throughput base public"]
    assert "throughput large cjepa-compiled" in names


def test_the_tests_are_those_that_need_a_gpu() -> None:
    tests = agenda("cuda", False, None, [])[0]
    files = [part for part in tests.command if part.endswith(".py")]
    assert "tests/training/test_trainer.py" in files
    assert all(re.search(r"mark\.gpu", (ROOT / file).read_text()) for file in files)


def test_what_a_gpu_or_python_3_12_says_fails_no_test() -> None:
    """Warnings are errors in tests; these come on machines where tests were not run before, and mean nothing."""
    context = (
        "Attempting to run cuBLAS, but there was no current CUDA context! Attempting to set the primary context..."
    )
    warnings.warn(context, UserWarning, stacklevel=1)
    forked = "This process (pid=7) is multi-threaded, use of fork() may lead to deadlocks in the child."
    warnings.warn(forked, DeprecationWarning, stacklevel=1)
    with pytest.raises(UserWarning, match="another"):
        warnings.warn("another", UserWarning, stacklevel=1)


def test_what_is_not_there_is_skipped_until_it_is(tmp_path: Path) -> None:
    lacking = agenda("cuda", False, None, [])
    absent = {each.name: each.absent for each in lacking if each.absent}
    assert absent["throughput base public"] == absent["public step"] == "no --reference"
    assert absent["study"] == "no --data"
    assert call([piece("peer", "", absent="it is not installed")], Results(tmp_path), 60.0, False) == 0
    assert Results(tmp_path).pieces["peer"] == {"state": "skipped", "why": "it is not installed"}
    assert "- peer: skipped (it is not installed)" in report(Results(tmp_path))
    assert call([piece("peer", "")], Results(tmp_path), 60.0, False) == 0
    assert Results(tmp_path).pieces["peer"]["state"] == "done"


def test_a_call_keeps_rows_and_words(tmp_path: Path) -> None:
    rows = "import sys; print('{\"size\": 1}'); print('warned', file=sys.stderr); print('{\"size\": 2}')"
    pieces = [piece("first", rows, is_row=True), piece("second", "print('words')")]
    assert call(pieces, Results(tmp_path), 60.0, False) == 0
    assert Results(tmp_path).pieces["first"]["row"] == {"size": 2}
    assert Results(tmp_path).pieces["second"]["said"] == "words\n"
    assert {"== first", "warned", "== second", "words"} < set((tmp_path / "gpu.log").read_text().splitlines())


def test_a_row_that_is_missing_is_a_failure(tmp_path: Path) -> None:
    assert call([piece("first", "print('no row')", is_row=True)], Results(tmp_path), 60.0, False) == 1


def test_a_budget_that_is_spent_leaves_the_rest_but_not_what_still_fits(tmp_path: Path) -> None:
    pieces = [piece("first", ""), piece("long", "", expected=59.99999, limit=99.0), piece("short", "")]
    assert call(pieces, Results(tmp_path), 60.0, False) == MORE
    assert set(Results(tmp_path).pieces) == {"first", "short"}
    assert call(pieces, Results(tmp_path), 50.0, False) == 0  # nothing else is left, and it has to be tried
    assert Results(tmp_path).pieces["long"]["state"] == "done"


def test_a_failure_is_kept_and_not_tried_again_unless_asked(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code = f"import pathlib, sys; p = pathlib.Path({str(mark)!r}); sys.exit(0) if p.exists() else sys.exit('no memory')"
    pieces = [piece("fails", code), piece("works", "")]
    assert call(pieces, Results(tmp_path), 99.0, False) == 1
    assert "no memory" in Results(tmp_path).pieces["fails"]["why"]
    assert "- fails: failed (no memory)" in report(Results(tmp_path))
    assert Results(tmp_path).pieces["works"]["state"] == "done"
    mark.touch()
    assert call(pieces, Results(tmp_path), 99.0, False) == 1
    assert call(pieces, Results(tmp_path), 99.0, True) == 0


def test_what_takes_too_long_is_stopped_with_all_that_it_started(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    child = f"import pathlib, time; time.sleep(3); pathlib.Path({str(mark)!r}).touch()"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    assert call([piece("hangs", code, limit=1.5)], Results(tmp_path), 9.0, False) == 1
    assert "not done after 2 seconds" in Results(tmp_path).pieces["hangs"]["why"]
    time.sleep(4)
    assert not mark.exists()


def test_what_the_budget_cut_off_is_tried_once_more_and_its_row_is_kept(tmp_path: Path) -> None:
    code = "import time; print('{\"size\": 1}'); time.sleep(60)"
    pieces = [piece("slow", code, limit=50.0, is_row=True)]
    assert call(pieces, Results(tmp_path), 2.0, False) == MORE
    assert Results(tmp_path).pieces["slow"]["state"] == "cut off"
    assert call(pieces, Results(tmp_path), 1.0, False) == 1
    assert Results(tmp_path).pieces["slow"]["row"] == {"size": 1}


def test_what_continues_goes_on_in_the_next_call_with_the_time_that_there_is(tmp_path: Path) -> None:
    plan = Piece("study", ("-c", f"import sys; print(sys.argv); sys.exit({MORE})", BUDGET), 1.0, 300.0, continues=True)
    for _ in range(2):
        assert call([plan], Results(tmp_path), 100.0, False) == MORE
    assert (tmp_path / "gpu.log").read_text().count("['-c', '40s']") == 2


def test_a_call_that_is_killed_keeps_what_was_measured(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from benchmarks.gpu import Piece, Results, call

first = Piece("first", ("-c", "print('measured')"), 1, 30)
second = Piece("second", ("-c", "import time; time.sleep(9)"), 1, 30)
call([first, second], Results(Path({str(tmp_path)!r})), 99, False)
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    log = tmp_path / "gpu.log"
    while not log.exists() or "== second" not in log.read_text():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert Results(tmp_path).pieces["first"]["said"] == "measured\n"
    assert "second" not in Results(tmp_path).pieces


def test_compiled_code_is_kept_between_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    code = "import os; print(os.environ['TORCHINDUCTOR_CACHE_DIR'])"
    assert call([piece("one", code), piece("two", code)], Results(tmp_path), 60.0, False) == 0
    one, two = (Results(tmp_path).pieces[name]["said"] for name in ("one", "two"))
    assert one == two
    assert str(tmp_path) not in one  # what lies beside the results is brought home


def test_files_of_pieces_travel_and_are_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there, home, out = tmp_path / "there", tmp_path / "home", tmp_path / "out"
    (there / "study").mkdir(parents=True)
    (there / "study" / "old.json").write_text("old")
    monkeypatch.setattr(gpu, "FOLDER", there)
    write = f"import pathlib; pathlib.Path({str(there)!r}, 'study', '%s.json').write_text('%s')"
    time.sleep(0.1)
    pieces = [
        piece("study", write % ("new", "new") + f"; raise SystemExit({MORE})", continues=True, writes="study"),
        piece("fails here", "raise SystemExit(1)"),
    ]
    assert call(pieces, Results(out), 60.0, False) == MORE
    assert call([piece("study", write % ("newer", "newer"), writes="study")], Results(out), 60.0, False) == 0
    assert Results(out).pieces["study"]["files"] == {"study/new.json": "new", "study/newer.json": "newer"}
    Results(home).note("fails here", {"state": "done"})
    merge(Results(out), Results(home))
    assert {path.name: path.read_text() for path in (home / "study").iterdir()} == {
        "new.json": "new",
        "newer.json": "newer",
    }
    assert {name: found["state"] for name, found in Results(home).pieces.items()} == {
        "fails here": "done",
        "study": "done",
    }
    assert "files" not in Results(home).pieces["study"]
    measured = json.loads((out / "gpu.json").read_text())["pieces"]["study"]["environment"]
    assert Results(home).pieces["study"]["environment"] == measured
    assert json.loads((home / "gpu.json").read_text()).keys() == {"pieces"}, "not where they were merged"


def test_the_report_has_ratios_and_the_waits_of_the_host(tmp_path: Path) -> None:
    rows = [
        row_of("base", "cjepa-compiled", 5000.0),
        row_of("base", "cjepa", 4000.0, synchronisations_per_step={"cudaStreamSynchronize": 1.0, "cudaMemcpy": 0.0}),
        row_of("base", "public", 2000.0, synchronisations_per_step=None),
        row_of("base", "lightly", 100.0, device="other"),
    ]
    for row in rows:
        Results(tmp_path).note(row["way"], {"state": "done", "row": row})
    head, _, *lines = report(Results(tmp_path)).splitlines()
    found = {
        line.split(" | ")[2]: dict(zip(head.split(" | "), line.strip(" |").split(" | "), strict=False))
        for line in lines
    }
    assert [line.split(" | ")[2] for line in lines] == ["cjepa", "cjepa-compiled", "public", "lightly"]
    assert found["cjepa-compiled"]["times public"] == "2.50"
    assert found["cjepa-compiled"]["times cjepa"] == "1.25"
    assert found["lightly"]["times public"] == ""  # another device
    waits = [line.strip(" |").split(" | ")[-1] for line in lines]
    assert waits == ["1 cudaStreamSynchronize", "none", "not counted", "none"]


def test_the_whole_agenda_with_a_toy(tmp_path: Path) -> None:
    # Compiling needs a C++ compiler and most of a minute on a CPU, and others' modules are tried above.
    left_out = ("cjepa-compiled", "lightly", "stable-pretraining")
    stored = {"pieces": {f"throughput tiny {way}": {"state": "done"} for way in left_out}}
    (tmp_path / "gpu.json").write_text(json.dumps(stored))
    command = [sys.executable, "-m", "benchmarks.gpu", "--toy", "--device", "cpu", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "gpu.log").read_text()
    found = Results(tmp_path).pieces
    assert found["throughput tiny cjepa"]["row"]["images_per_second"]["median"] > 0
    assert found["throughput tiny public"]["why"] == "no --reference"
    assert "| cpu | tiny | cjepa | 4 | " in done.stdout
    assert report(Results(tmp_path)) in done.stdout


def test_the_committed_result_can_be_reported() -> None:
    if not (gpu.FOLDER / "gpu.json").exists():
        pytest.skip("not measured yet: make gpu")
    assert report(Results(gpu.FOLDER))
