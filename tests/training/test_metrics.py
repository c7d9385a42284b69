import json
import logging
import math
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cjepa.errors import InputError
from cjepa.training.metrics import LoggingConfig, MetricsLog, MetricsWriter, open_writers, read_metrics
from cjepa.training.rows import RowLog, read_rows


def log_with(path: Path, *steps: int) -> MetricsLog:
    log = MetricsLog(path)
    for step in steps:
        log.write(step, "train", {"loss": step / 3})
    return log


def steps_in(path: Path) -> list[int]:
    return [row["step"] for row in read_metrics(path)]


class TestLog:
    def test_rows_come_back_exactly(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.jsonl"
        log = MetricsLog(path)
        log.write(1, "train", {"loss": 0.1 + 0.2, "rank": 5})
        log.write(1, "test", {"knn": 1e-300})
        assert read_metrics(path) == [
            {"step": 1, "split": "train", "loss": 0.1 + 0.2, "rank": 5.0},
            {"step": 1, "split": "test", "knn": 1e-300},
        ]
        assert path.read_text().count("\n") == 2

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_non_finite_numbers_are_valid_json(self, tmp_path: Path, value: float) -> None:
        path = tmp_path / "metrics.jsonl"
        MetricsLog(path).write(1, "train", {"loss": value})
        assert path.read_text() == '{"step": 1, "split": "train", "loss": null}\n'
        [row] = read_metrics(path)
        assert math.isnan(row["loss"])

    def test_each_row_is_in_the_file_at_once(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.jsonl"
        log = MetricsLog(path)
        for step in range(3):
            log.write(step, "train", {"loss": 1.0})
            assert steps_in(path) == list(range(step + 1))

    def test_names_of_the_row_itself_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(AssertionError):
            MetricsLog(tmp_path / "metrics.jsonl").write(1, "train", {"step": 1.0})

    def test_flush_syncs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        log = MetricsLog(tmp_path / "metrics.jsonl")
        log.flush()  # nothing written yet
        log.write(1, "train", {"loss": 1.0})
        synced: list[int] = []
        monkeypatch.setattr(os, "fsync", synced.append)
        log.close()
        assert len(synced) == 1


class TestResume:
    def test_later_rows_are_removed(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.jsonl"
        log = log_with(path, 1, 2, 3, 4)
        log.truncate_after(2)
        log.write(3, "train", {"loss": 9.0})
        assert steps_in(path) == [1, 2, 3]

    def test_everything_is_removed_for_a_run_without_checkpoint(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.jsonl"
        log_with(path, 0, 1).truncate_after(-1)
        assert path.read_bytes() == b""

    def test_missing_file_is_fine(self, tmp_path: Path) -> None:
        MetricsLog(tmp_path / "metrics.jsonl").truncate_after(3)
        assert not (tmp_path / "metrics.jsonl").exists()

    def test_nothing_to_remove_leaves_the_file_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.jsonl"
        log = log_with(path, 1, 2)
        before = path.stat()
        log.truncate_after(2)
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)

    def test_every_cut_of_the_last_line(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.jsonl"
        log_with(path, 1, 2, 3)
        content = path.read_bytes()
        last = content[:-1].rindex(b"\n") + 1
        for cut in range(last, len(content)):
            path.write_bytes(content[:cut])
            assert steps_in(path) == [1, 2]
            log = MetricsLog(path)
            log.truncate_after(3)
            log.write(3, "train", {"loss": 1.0})
            assert steps_in(path) == [1, 2, 3]

    def test_a_cut_line_does_not_take_the_next_row_with_it(self, tmp_path: Path) -> None:
        """evaluations.jsonl of a run folder that was copied while it was written to is never cut back."""
        path = tmp_path / "evaluations.jsonl"
        log = RowLog(path)
        for step in (1, 2):
            log.append({"step": step})
        path.write_bytes(path.read_bytes()[:-4])
        log.append({"step": 3})
        log.append({"step": 4})
        assert [row["step"] for row in read_rows(path)] == [1, 3, 4]

    def test_an_evaluation_that_will_be_made_again_is_removed(self, tmp_path: Path) -> None:
        """A stop in the evaluation of step 2 saved it as not evaluated; the next life measured, and was killed."""
        path = tmp_path / "metrics.jsonl"
        log = log_with(path, 1, 2)
        for step in (1, 2):
            log.write(step, "evaluation", {"rank": step})
        open_writers(LoggingConfig(), tmp_path, 2, {}, evaluated=1)[0].close()
        assert [(row["step"], row["split"]) for row in read_metrics(path)] == [
            (1, "train"),
            (2, "train"),
            (1, "evaluation"),
        ]

    def test_of_repeated_rows_the_last_one_counts(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.jsonl"
        log_with(path, 1, 2).write(1, "train", {"loss": 9.0})
        RowLog(path).append({"step": 3, "note": "of another tool"})
        assert [(row["step"], row["loss"]) for row in read_metrics(path)] == [(1, 9.0), (2, 2 / 3)]

    def test_damaged_line_is_reported_and_removed(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        path = tmp_path / "metrics.jsonl"
        log = log_with(path, 1)
        with path.open("ab") as file:
            file.write(bytes(20) + b"\n" + b'{"step": "2"}\n[1]\n' + b"[" * 100_000 + b"\n\xff\n")
        log.write(2, "train", {"loss": 1.0})
        with caplog.at_level(logging.WARNING):
            assert steps_in(path) == [1, 2]
        assert "5 damaged lines left out, the first is line 2" in caplog.text
        log.truncate_after(2)
        assert path.read_bytes().count(b"\n") == 2

    def test_kill_while_cutting_back_leaves_the_old_or_the_new(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "metrics.jsonl"
        log = log_with(path, 1, 2, 3)

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", killed)
            with pytest.raises(KeyboardInterrupt):
                log.truncate_after(1)
        assert steps_in(path) == [1, 2, 3]
        assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.integers(0, 20), max_size=10), st.integers(-1, 21), st.binary(max_size=30))
    def test_rows_up_to_the_step_stay_byte_for_byte(
        self, tmp_path_factory: pytest.TempPathFactory, steps: list[int], last: int, rest: bytes
    ) -> None:
        path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
        log = RowLog(path)
        for step in steps:
            log.append({"step": step, "text": "\u2028 ü \\n", "value": 1 / 3})
        whole = path.read_bytes() if steps else b""
        path.write_bytes(whole + rest.replace(b"\n", b""))
        log.truncate_after(last)
        lines = whole.splitlines(keepends=True)
        assert path.read_bytes() == b"".join(line for step, line in zip(steps, lines, strict=True) if step <= last)
        assert [row["step"] for row in read_rows(path)] == [step for step in steps if step <= last]


class TestWriters:
    def test_only_the_log_by_default(self, tmp_path: Path) -> None:
        log_with(tmp_path / "metrics.jsonl", 1, 2, 3)
        [writer] = open_writers(LoggingConfig(), tmp_path, 2, {})
        writer.write(3, "train", {"loss": 1.0})
        writer.close()
        assert steps_in(tmp_path / "metrics.jsonl") == [1, 2, 3]
        assert isinstance(writer, MetricsWriter)

    def test_tensorboard(self, tmp_path: Path) -> None:
        pytest.importorskip("tensorboard")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        config = LoggingConfig(tensorboard=True)
        for start in (0, 2):  # a run, and the same one resumed after step 2
            writers = open_writers(config, tmp_path, start, {})
            for step in range(start + 1, start + 4):
                for writer in writers:
                    writer.write(step, "train", {"loss": step + start / 100})
            for writer in writers:
                writer.flush()
                writer.close()
        events = EventAccumulator(str(tmp_path / "tensorboard"))
        events.Reload()
        rows = events.Scalars("train/loss")
        assert [row.step for row in rows] == [1, 2, 3, 4, 5]
        assert [row.value for row in rows] == pytest.approx([1, 2, 3.02, 4.02, 5.02])
        assert steps_in(tmp_path / "metrics.jsonl") == [1, 2, 3, 4, 5]

    def test_wandb_continues_the_same_run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        started: list[dict[str, Any]] = []
        logged: list[Mapping[str, float]] = []

        class Run:
            def define_metric(self, name: str, step_metric: str) -> None:
                assert (name, step_metric) == ("*", "step")

            def log(self, values: Mapping[str, float]) -> None:
                logged.append(values)

            def finish(self) -> None:
                logged.append({})

        def init(**settings: Any) -> Run:
            started.append(settings)
            return Run()

        monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
        for step in (0, 5):
            [_, writer] = open_writers(LoggingConfig(wandb="birds"), tmp_path, step, {"seed": 1})
            writer.write(step + 1, "train", {"loss": 0.5})
            writer.flush()
            writer.close()
        assert logged == [{"step": 1, "train/loss": 0.5}, {}, {"step": 6, "train/loss": 0.5}, {}]
        assert started[0] == started[1]
        assert started[0]["project"] == "birds"
        assert started[0]["name"] == tmp_path.name
        assert started[0]["config"] == {"seed": 1}

    def test_a_copy_beside_its_original_begins_a_wandb_run_of_its_own(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        ids: list[str] = []

        def init(**settings: Any) -> SimpleNamespace:
            ids.append(settings["id"])
            return SimpleNamespace(define_metric=lambda *_, **__: None, finish=lambda: None)

        monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))

        def id_of(folder: Path) -> str:
            for writer in open_writers(LoggingConfig(wandb="birds"), folder, 0, {}):
                writer.close()
            return ids[-1]

        (tmp_path / "one").mkdir()
        first = id_of(tmp_path / "one")
        shutil.copytree(tmp_path / "one", tmp_path / "copy")
        shutil.copytree(tmp_path / "one", tmp_path / "backup")
        second = id_of(tmp_path / "copy")
        assert second != first
        assert f"copy is a copy of {tmp_path / 'one'}" in caplog.text
        assert [id_of(tmp_path / name) for name in ("copy", "one")] == [second, first]
        (tmp_path / "one").rename(tmp_path / "moved")
        (tmp_path / "link").symlink_to("moved")
        assert [id_of(tmp_path / name) for name in ("moved", "link")] == [first, first]
        shutil.rmtree(tmp_path / "moved")
        assert id_of(tmp_path / "backup") == first
        (tmp_path / "earlier").mkdir()
        (tmp_path / "earlier" / "wandb-id.txt").write_text("0123")  # as earlier versions wrote it
        assert [id_of(tmp_path / "earlier") for _ in range(2)] == ["0123", "0123"]

    @pytest.mark.parametrize(
        ("config", "module", "extra"),
        [
            (LoggingConfig(tensorboard=True), "torch.utils.tensorboard", "tensorboard"),
            (LoggingConfig(wandb="birds"), "wandb", "wandb"),
        ],
    )
    def test_missing_extra_is_named_and_nothing_is_lost(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: LoggingConfig, module: str, extra: str
    ) -> None:
        log_with(tmp_path / "metrics.jsonl", 1)
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(InputError, match=rf'pip install "cjepa\[{extra}\]"'):
            open_writers(config, tmp_path, 0, {})
        assert steps_in(tmp_path / "metrics.jsonl") == [1]

    def test_rows_are_plain_json_lines(self, tmp_path: Path) -> None:
        log_with(tmp_path / "metrics.jsonl", 1, 2)
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [1, 2]
