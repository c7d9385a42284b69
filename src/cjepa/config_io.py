"""Temporary: the former place of cjepa.config.parsing; delete once nothing imports it."""

from cjepa.config import *  # noqa: F403
