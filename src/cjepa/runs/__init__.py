"""What the commands do: pre-train, evaluate, the demo, pictures and the doctor. Printing is left to the cli."""

from cjepa.runs.demo import Demo, run_demo
from cjepa.runs.doctor import Diagnosis, diagnose, environment
from cjepa.runs.evaluating import Evaluation, Result, evaluate_run
from cjepa.runs.pictures import PICTURES, draw_pictures
from cjepa.runs.pretraining import Outcome, pretrain
from cjepa.runs.report import name_runs, write_report
from cjepa.runs.visualizing import Picture, visualize

__all__ = [
    "PICTURES",
    "Demo",
    "Diagnosis",
    "Evaluation",
    "Outcome",
    "Picture",
    "Result",
    "diagnose",
    "draw_pictures",
    "environment",
    "evaluate_run",
    "name_runs",
    "pretrain",
    "run_demo",
    "visualize",
    "write_report",
]
