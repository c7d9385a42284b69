"""What the commands do: pre-train, evaluate, the demo, pictures, shards and the doctor. Printing is left to the cli."""

from cjepa.runs.demo import Demo, run_demo
from cjepa.runs.doctor import Diagnosis, diagnose, environment
from cjepa.runs.embedding import Embedded, EmbeddingJob, embed_images
from cjepa.runs.evaluating import Result, evaluate_run, results_path
from cjepa.runs.exporting import card_of, export_run
from cjepa.runs.pictures import PICTURES, draw_pictures
from cjepa.runs.planning import Plan, images_here, plan
from cjepa.runs.pretraining import Outcome, pretrain
from cjepa.runs.replaying import Replayed, replay
from cjepa.runs.report import name_runs, write_report
from cjepa.runs.sharding import Sharded, index_shards, shard_images
from cjepa.runs.visualizing import Picture, visualize

__all__ = [
    "PICTURES",
    "Demo",
    "Diagnosis",
    "Embedded",
    "EmbeddingJob",
    "Outcome",
    "Picture",
    "Plan",
    "Replayed",
    "Result",
    "Sharded",
    "card_of",
    "diagnose",
    "draw_pictures",
    "embed_images",
    "environment",
    "evaluate_run",
    "export_run",
    "images_here",
    "index_shards",
    "name_runs",
    "plan",
    "pretrain",
    "replay",
    "results_path",
    "run_demo",
    "shard_images",
    "visualize",
    "write_report",
]
