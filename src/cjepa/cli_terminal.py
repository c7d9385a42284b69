"""What the command line does with its terminal: tables on standard output, messages on standard error."""

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def print_table(table: object) -> None:
    """A table of at most 80 columns; where the terminal says that it has fewer than 40, numbers still stay whole."""
    from rich.console import Console

    console = Console(highlight=False)
    console.width = min(console.width, 80) if console.width >= 40 else 80
    console.print(table)


def spell_out_what_it_lacks() -> None:
    """Characters that standard output cannot encode are spelt out, as on standard error.

    A class in Chinese on a terminal of Latin letters, or a folder whose name is not UTF-8, would end a finished run in
    a traceback.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def drop_output() -> None:
    """Throw away what standard output still holds: Python would try, and fail, to write it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Terminal(logging.Handler):
    """Messages on standard error, looked up for each one: the live line redirects it while it is open."""

    def emit(self, record: logging.LogRecord) -> None:
        warning = "warning: " if record.levelno >= logging.WARNING else ""
        print(f"{warning}{record.getMessage()}", file=sys.stderr, flush=True)

    def filter(self, record: logging.LogRecord) -> bool:
        """One of many ranks speaks for all. A choice of regularisation and the like belong into a log only."""
        from cjepa.ranks import is_first

        return is_first() and (record.levelno > logging.INFO or not record.name.startswith("cjepa.evaluation"))


@contextmanager
def messages_on_terminal() -> Iterator[None]:
    """While open, what the package logs is shown on standard error."""
    handler, package = _Terminal(), logging.getLogger("cjepa")
    level = package.level
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        yield
    finally:
        package.setLevel(level)
        package.removeHandler(handler)
