"""What the server that ranks are forked from has imported; tests/conftest.py comes first and installs shape checks."""

import torch._dynamo  # torch imports it at the first use of its engines, which takes seconds
import torch.distributed.checkpoint.state_dict
import torch.distributed.fsdp
import torch.nn.parallel  # noqa: F401

import tests.distributed.cases
import tests.distributed.runs  # noqa: F401
