"""Temporary: the former place of cjepa.config.yaml_text; delete once nothing imports it."""

from cjepa.config import *  # noqa: F403
