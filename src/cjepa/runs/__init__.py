"""What the commands do: pre-train, evaluate, the demo and the doctor. Everything they print is left to the cli."""

from cjepa.runs.demo import Demo, run_demo
from cjepa.runs.doctor import Diagnosis, diagnose, environment
from cjepa.runs.evaluating import Result, evaluate_run
from cjepa.runs.pretraining import Outcome, pretrain

__all__ = [
    "Demo",
    "Diagnosis",
    "Outcome",
    "Result",
    "diagnose",
    "environment",
    "evaluate_run",
    "pretrain",
    "run_demo",
]
