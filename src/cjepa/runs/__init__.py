"""What the commands do: pre-train, evaluate, the demo, pictures, shards and the doctor. Printing is left to the cli."""

from cjepa.runs.demo import Demo, run_demo
from cjepa.runs.doctor import Diagnosis, diagnose, environment
from cjepa.runs.evaluating import Evaluation, Result, evaluate_run
from cjepa.runs.pictures import PICTURES, draw_pictures
from cjepa.runs.pretraining import Outcome, pretrain
from cjepa.runs.replaying import Replayed, replay
from cjepa.runs.sharding import Sharded, index_shards, shard_images

__all__ = [
    "PICTURES",
    "Demo",
    "Diagnosis",
    "Evaluation",
    "Outcome",
    "Replayed",
    "Result",
    "Sharded",
    "diagnose",
    "draw_pictures",
    "environment",
    "evaluate_run",
    "index_shards",
    "pretrain",
    "replay",
    "run_demo",
    "shard_images",
]
