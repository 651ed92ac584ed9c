"""A stage of the work run ahead of the next one: in a thread, or in a process of its own."""

from __future__ import annotations

import multiprocessing
import pickle
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

from personalize import ui

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Runs an iterable in a thread of its own, at most ``depth`` items ahead, so that decoding and tracking overlap with the model.

    Decoder and tracker release the interpreter's lock. Order is kept; an exception of the iterable is raised where its item would come.
    Use it as a context manager, or run it to the end, so that the thread is joined.
    """

    _END = object()

    def __init__(self, items: Iterable[T], depth: int = 8) -> None:
        self._queue: queue.Queue[object] = queue.Queue(maxsize=max(depth, 1))
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._done = False
        self._thread = threading.Thread(target=self._run, args=(items,), daemon=True, name="prefetch")
        self._thread.start()

    def _run(self, items: Iterable[T]) -> None:
        iterator = iter(items)
        try:
            for item in iterator:
                if not self._put(item):
                    break
        except BaseException as error:  # handed to the reader, whatever it is
            self._error = error
        finally:
            if hasattr(iterator, "close"):
                iterator.close()
            self._put(self._END)

    def _put(self, item: object) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._done:
            raise StopIteration
        item = self._queue.get()
        if item is self._END:
            self.close()
            if self._error is not None:
                raise self._error
            raise StopIteration
        return item  # type: ignore[return-value]

    def close(self) -> None:
        """Stops the thread and drops what it had ready."""
        self._done = True
        self._stop.set()
        self._thread.join(timeout=10)

    def __enter__(self) -> Prefetch[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """PyTorch with ``count`` threads, one at least, beside a stage that needs a core: more would take it, waiting for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(count, 1))
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Apart(Generic[T]):
    """Runs the iterator that ``make(*args)`` returns in a process of its own, and gives its items in their order.

    For work that has to share the interpreter with nobody. ``make`` and ``args`` are pickled, and so are the items; an exception of the
    iterator is raised where its item would come, and warnings are said here. The process waits while some 64 kB of items are not taken:
    take them in a :class:`Prefetch`. It ends with the iteration, also when that is left early.
    """

    def __init__(self, make: Callable[..., Iterable[T]], *args: Any) -> None:
        # A fresh interpreter: threads of PyTorch or of a tracker here would not outlive a fork.
        context = multiprocessing.get_context("spawn")
        self._from, to = context.Pipe(duplex=False)
        self._process = context.Process(target=_serve, args=(to, make, args), daemon=True)
        self._process.start()
        to.close()

    def __iter__(self) -> Iterator[T]:
        try:
            while True:
                try:
                    kind, value = self._from.recv()
                except EOFError:
                    self._process.join(10)
                    raise RuntimeError(f"the process that works ahead ended with exit code {self._process.exitcode}") from None
                if kind == "item":
                    yield value
                elif kind == "warning":
                    ui.warn(value)
                elif kind == "error":
                    raise value
                else:
                    return
        finally:
            self._process.terminate()
            self._process.join()
            self._from.close()


def _serve(to: Connection, make: Callable[..., Iterable[Any]], args: tuple[Any, ...]) -> None:
    sys.setswitchinterval(0.001)  # a tracker's thread that has its answer waits so long, at most, while another thread runs Python
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal: the first one ends this one
    one_at_a_time = threading.Lock()

    def send(kind: str, value: Any = None) -> None:
        with one_at_a_time:  # a thread of the iterator may warn while another of its items is on its way
            to.send((kind, value))

    ui.divert(lambda text: send("warning", text))
    try:
        for item in make(*args):
            send("item", item)
        send("end")
    except BrokenPipeError:  # nobody listens any more
        pass
    except Exception as error:
        try:  # a plug-in's own exception may not survive the way: its name and text do (what is loaded was written here)
            pickle.loads(pickle.dumps(error))
        except Exception:
            error = RuntimeError(f"{type(error).__name__}: {error}").with_traceback(error.__traceback__)
        error.add_note("".join(traceback.format_tb(error.__traceback__)))
        send("error", error)
