"""Temporary: the former place of cjepa.config.values; delete once nothing imports it."""

from cjepa.config import *  # noqa: F403
