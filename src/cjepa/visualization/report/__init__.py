"""The report: one HTML page of one or several runs, from plain values."""

from cjepa.visualization.report.material import Evaluation, Judgement, Pairs, RunMaterial, Samples, Snapshot
from cjepa.visualization.report.page import render

__all__ = ["Evaluation", "Judgement", "Pairs", "RunMaterial", "Samples", "Snapshot", "render"]
