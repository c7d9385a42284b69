"""What the commands do: pre-train, evaluate, the demo, pictures and the doctor. Printing is left to the cli."""

from cjepa.runs.demo import Demo, run_demo
from cjepa.runs.doctor import Diagnosis, diagnose, environment
from cjepa.runs.evaluating import Result, evaluate_run
from cjepa.runs.pictures import PICTURES, draw_pictures
from cjepa.runs.pretraining import Outcome, pretrain

__all__ = [
    "PICTURES",
    "Demo",
    "Diagnosis",
    "Outcome",
    "Result",
    "diagnose",
    "draw_pictures",
    "environment",
    "evaluate_run",
    "pretrain",
    "run_demo",
]
