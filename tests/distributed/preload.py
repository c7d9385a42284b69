"""What the server that ranks are forked from has imported; tests/conftest.py comes first and installs shape checks."""

import torch.distributed.checkpoint.state_dict
import torch.distributed.fsdp
import torch.nn.parallel

import cjepa.build
import cjepa.evaluation.monitor  # noqa: F401
