"""What the user sees in the terminal: one-line messages, progress bars with a time estimate, tables.

Messages and bars go to stderr, results to stdout. Ranks above 0 of a distributed run stay silent. Rich is imported on first use only,
so that ``--help`` stays quick.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

T = TypeVar("T")


@cache
def _console(stderr: bool) -> Console:
    from rich.console import Console

    return Console(stderr=stderr)  # without file=: it looks up sys.stderr anew each time, so redirection works


def _silent() -> bool:
    """Whether this is a worker rank of a distributed run."""
    return os.environ.get("LOCAL_RANK", "0") != "0" or os.environ.get("NODE_RANK", "0") != "0"


def one_line(text: object) -> str:
    """The text with all runs of white space, line breaks included, as single spaces."""
    return " ".join(str(text).split())


def _say(text: str, style: str | None, stderr: bool) -> None:
    # soft_wrap: never broken at the terminal's width, so that one message stays one line for grep. No markup: [ is just a bracket.
    _console(stderr).print(one_line(text), style=style, soft_wrap=True, markup=False, highlight=False)


_diverted: Callable[[str], None] | None = None


def divert(to: Callable[[str], None]) -> None:
    """Hand warnings of this process to ``to`` from now on: to the process that it works for, whose terminal it is."""
    global _diverted
    _diverted = to


@contextmanager
def unsaid() -> Generator[None]:
    """Warnings within are not said: what is read again here was warned of when it was read first, perhaps in another process."""
    global _diverted
    before, _diverted = _diverted, lambda text: None
    try:
        yield
    finally:
        _diverted = before


def warn(text: str) -> None:
    """One yellow line on stderr: something was left out or may surprise, and the work goes on."""
    if _diverted is not None:
        _diverted(text)
    elif not _silent():
        _say(f"warning: {text}", "yellow", stderr=True)


def error(text: object) -> None:
    """One red line on stderr: why the command ends here."""
    _say(f"error: {text}", "bold red", stderr=True)


def info(text: str) -> None:
    """One plain line on stderr: what is being done."""
    if not _silent():
        _say(text, None, stderr=True)


# Rich draws one live display at a time: nested bars are further rows of the outermost one.
_shown: RichProgress | None = None


@contextmanager
def _live() -> Generator[RichProgress]:
    global _shown
    if _shown is not None:
        yield _shown
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_console(True), speed_estimate_period=60) as live:
        _shown = live
        try:
            yield live
        finally:
            _shown = None


class Progress(Generic[T]):
    """A bar on stderr with a time estimate; see :func:`progress`."""

    def __init__(self, items: Iterable[T] | None, total: float | None, title: str) -> None:
        if total is None and isinstance(items, Sized):
            total = len(items)
        self.items, self.total, self.title, self.done = items, total, title, 0.0
        self._live: Any = None
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._started = time.perf_counter()

    def __enter__(self) -> Progress[T]:
        self._started = time.perf_counter()
        if not _silent() and _console(True).is_terminal:
            self._live = _live()
            self._bar = self._live.__enter__()
            self._task = self._bar.add_task(self.title, total=self.total)
        return self

    def advance(self, n: float = 1) -> None:
        """Count n more items as done."""
        self.done += n
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, n)

    def update(self, total: float | None = None, title: str | None = None) -> None:
        """Correct the total (a clip's length is an estimate until it ends) or the title."""
        self.total, self.title = total if total is not None else self.total, title or self.title
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, total=self.total, description=self.title)

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: Any) -> None:
        if self._bar is not None and self._task is not None:
            if kind is None:  # an estimated total was off: the bar still ends full
                self._bar.update(self._task, total=max(self.done, 1), completed=max(self.done, 1))
            self._live.__exit__(kind, value, trace)
        elif kind is None and not _silent():
            _say(f"{self.title}: {self.done:g} in {time.perf_counter() - self._started:.1f} s", None, stderr=True)

    def __iter__(self) -> Iterator[T]:
        if self.items is None:
            raise TypeError("progress(None, ...) is a context manager: with progress(None, total, title) as bar: bar.advance()")
        with self:
            for item in self.items:
                yield item
                self.advance()


@overload
def progress(items: None = None, total: float | None = None, title: str = "Working") -> Progress[Any]: ...
@overload
def progress(items: Iterable[T], total: float | None = None, title: str = "Working") -> Progress[T]: ...
def progress(items: Iterable[T] | None = None, total: float | None = None, title: str = "Working") -> Progress[T]:
    """A progress bar with a time estimate on stderr; where stderr is no terminal, one line at the end.

    With ``items`` iterate over it; with None use it as a context manager and call ``advance(n)``. ``total`` None: the items' length, or
    unknown (no estimate). Bars may be nested.

    >>> sum(progress([1, 2, 3], 3, "Adding"))
    6
    """
    return Progress(items, total, title)


def table(title: str | None, columns: Sequence[str], rows: Iterable[Sequence[object]], stream: str = "stdout") -> None:
    """A table on stdout (or 'stderr'). Numbers stand on the right; floats get three digits, NaN and None a dash."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    cells = [[*row] for row in rows]
    drawn = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(columns):
        values = [row[i] for row in cells if i < len(row) and row[i] is not None]
        numeric = bool(values) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
        drawn.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        drawn.add_row(*(Text(_cell(value)) for value in row))
    console = _console(stream == "stderr")
    if not console.is_terminal:  # a file or a pipe has no width: never squeeze what a script may read
        from rich.console import Console

        console = Console(file=sys.stderr if stream == "stderr" else sys.stdout, width=200)
    console.print(drawn, highlight=False)


def markdown(title: str | None, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """The same table for a Markdown file, as a section of its own where it has a title."""
    lines = [columns, ["---"] * len(columns), *([_cell(value) for value in row] for row in rows)]
    return "\n".join([*([f"## {title}", ""] if title else []), *("| " + " | ".join(line) + " |" for line in lines), ""])


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
