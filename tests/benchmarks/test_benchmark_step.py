import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.step import CASES, FEWEST, PARTS, Bench, Case, Worker, measure, table, write
from cjepa.masking import build_sampler
from cjepa.models import EncoderConfig
from cjepa.models.predictor import PredictorConfig

pytestmark = pytest.mark.skipif(not Path("/proc/stat").exists(), reason="guarded timings are for Linux")

CPU = torch.device("cpu")
TINY = Case(
    name="tiny",
    encoder=EncoderConfig(width=48, depth=3, heads=3, patch_size=4),
    predictor=PredictorConfig(width=48, depth=2),
    image_size=32,
    batch_size=16,
)


def row(case: str, rate: float | None) -> dict[str, Any]:
    spread = {"median": rate, "low": rate, "high": rate}
    seconds = {"step": {"median": 2.0}, **{part: {"median": 0.25} for part in PARTS}}
    timed = {"images_per_second": spread, "seconds": seconds}
    empty = {"images_per_second": None, "seconds": None}
    memory = {"peak_memory": 3 << 20, "peak_memory_before_the_model": 1 << 20}
    return {"case": case, "bursts": 7, **memory} | (empty if rate is None else timed)


@pytest.fixture
def own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time by the work of this process, so that other tests, which run at the same time, do not count."""
    monkeypatch.setattr(time, "perf_counter", time.process_time)


class TestBench:
    @pytest.mark.usefixtures("own_time")
    def test_the_parts_make_up_the_step(self) -> None:
        bench = Bench(TINY, CPU)
        bench.step()
        steps = [bench.step() for _ in range(9)]
        for step in steps:
            assert set(step) == {"step", *PARTS}
            assert all(seconds > 0 for seconds in step.values())
            assert sum(step[part] for part in PARTS) == pytest.approx(step["step"])
        unaccounted = sorted(step["other"] / step["step"] for step in steps)
        assert unaccounted[len(steps) // 2] < 0.1

    def test_it_takes_the_steps_of_a_run(self) -> None:
        bench = Bench(TINY, CPU)
        before = {name: tensor.clone() for name, tensor in bench.trainer.model.state_dict().items()}
        bench.step()
        changed = {
            name.split(".")[0]
            for name, tensor in bench.trainer.model.state_dict().items()
            if not torch.equal(tensor, before[name])
        }
        assert changed == {"encoder", "predictor", "target_encoder"}

    @pytest.mark.usefixtures("own_time")
    def test_a_deeper_predictor_takes_longer_and_nothing_else_does(self) -> None:
        deep = Bench(replace(TINY, predictor=PredictorConfig(width=48, depth=12)), CPU)
        shallow = Bench(replace(TINY, predictor=PredictorConfig(width=48, depth=1)), CPU)
        pairs = [(deep.step(), shallow.step()) for _ in range(9)]
        ratio = {part: min(long[part] for long, _ in pairs) / min(short[part] for _, short in pairs) for part in PARTS}
        assert ratio["predictor"] > 4
        assert 0.5 < ratio["target"] < 2
        assert 0.5 < ratio["context"] < 2

    def test_masks_are_of_median_length(self) -> None:
        config = TINY.config
        sampler = build_sampler(config.masking, config.grid, config.seed, TINY.batch_size)
        masks = [sampler(step, 0, 1) for step in range(101)]
        tokens = sorted(each.context.shape[1] + each.targets.shape[2] for each in masks)
        facts = Bench(TINY, CPU).facts()
        assert facts["context_patches"] + facts["target_patches"] == tokens[50]
        assert tokens[0] < tokens[50] < tokens[-1]

    def test_a_burst_is_the_mean_of_its_steps(self) -> None:
        seconds, others = Bench(TINY, CPU).burst()
        assert sum(seconds[part] for part in PARTS) == pytest.approx(seconds["step"])
        assert others >= 0

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_on_a_gpu(self) -> None:
        bench = Bench(replace(TINY, precision="bfloat16"), torch.device("cuda"))
        bench.step()
        step = bench.step()
        assert all(seconds > 0 for name, seconds in step.items() if name != "other")
        assert sum(step[part] for part in PARTS) == pytest.approx(step["step"])
        weights = sum(tensor.nbytes for tensor in bench.trainer.model.state_dict().values())
        assert bench.peak_memory() > 3 * weights  # gradients and two moments besides


class TestMeasure:
    def test_a_case_in_a_process_of_its_own(self, tmp_path: Path) -> None:
        [found] = measure([replace(TINY, precision="bfloat16")], seconds=0.5, device="cpu", threads=1)
        assert found["case"] == "tiny"
        assert found["precision"] == "bfloat16"
        assert found["bursts"] + found["bursts_disturbed"] > 0
        weights = 4 * found["parameters"]
        assert found["peak_memory"] > found["peak_memory_before_the_model"] + 3 * weights
        if found["bursts"] < FEWEST:  # other tests ran at the same time: then there is no number
            assert found["seconds"] is None
        path = tmp_path / "new" / "step.json"
        write(path, "cpu", 1, [found])
        written = json.loads(path.read_text())
        assert written["rows"] == [found]
        assert {"cpu", "packages", "commit"} <= written["environment"].keys()

    def test_disturbed_bursts_are_dropped(self) -> None:
        worker = Worker.__new__(Worker)
        worker.kept, worker.disturbed, worker.seconds_kept, worker.seconds_spent = [], 0, 0.0, 0.0
        answers = iter([({"step": 1.0}, 0.0), ({"step": 9.0}, 0.5), ({"step": 2.0}, 0.01)])

        class Pipe:
            def send(self, _: bool) -> None: ...

            def recv(self) -> object:
                return next(answers)

        worker.connection = Pipe()
        for _ in range(3):
            worker.burst()
        assert [burst["step"] for burst in worker.kept] == [1.0, 2.0]
        assert worker.disturbed == 1

    def test_the_cases_of_the_issue(self) -> None:
        sizes = {(c.encoder.width, c.encoder.patch_size, c.image_size, c.batch_size) for c in CASES.values()}
        assert sizes == {(192, 4, 32, 128), (384, 16, 224, 16), (768, 16, 224, 8)}
        assert {(c.predictor.width, c.predictor.depth) for c in CASES.values()} == {(384, 6)}
        assert sorted(c.precision for c in CASES.values()) == ["bfloat16"] * 3 + ["float32"] * 3


class TestTable:
    def test_values_and_gaps(self, tmp_path: Path) -> None:
        path = tmp_path / "step.json"
        path.write_text(json.dumps({"rows": [row("first", 64.0), row("second", None)]}))
        header, rule, first, second = table(path).splitlines()
        assert first.startswith("| first | 64 (64 to 64) | 7 | 3 (1) | 2 | 12.5 |")
        assert second.startswith("| second | disturbed | 7 | 3 (1) | |")
        assert {line.count("|") for line in (header, rule, first, second)} == {header.count("|")}


@pytest.mark.slow
def test_the_script(tmp_path: Path) -> None:
    out = tmp_path / "step.json"
    command = [sys.executable, "-m", "benchmarks.step", "--cases", "vit-t4-32px-bfloat16", "--seconds", "2"]
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    [found] = json.loads(out.read_text())["rows"]
    assert done.returncode == (1 if found["seconds"] is None else 0)
    assert "vit-t4-32px-bfloat16" in done.stdout
