"""Nothing beyond its limit: requests that wait or are worked on, seconds of work."""

from __future__ import annotations

import asyncio
import hmac
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Self, TypeVar

_RETRY_AFTER = 1  # seconds

T = TypeVar("T")


class Refusal(Exception):
    """An answer other than success: status, code for programs, sentence for people."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message

    @property
    def headers(self) -> dict[str, str]:
        """What the status obliges to say besides."""
        if self.status in (429, 503):
            return {"Retry-After": str(_RETRY_AFTER)}
        return {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}


def check_token(expected: str | None, given: str | None) -> None:
    """Raise `Refusal` 401 unless the tokens agree; the time taken does not tell how far."""
    if expected is None:
        return
    if given is None or not hmac.compare_digest(expected.encode(), given.encode()):
        raise Refusal(401, "unauthorised", "send the header Authorization: Bearer TOKEN")


class WorkQueue:
    """A few worker threads and a bounded number of requests that may wait for them.

    It works between `open` and `close`, which may follow each other repeatedly.
    """

    def __init__(self, *, workers: int, waiting: int, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._workers = workers
        self._room = workers + waiting
        self._taken = 0
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    @property
    def taken(self) -> int:
        """Requests in the house, waiting or worked on."""
        return self._taken

    def check_room(self) -> None:
        """Raise `Refusal` 429 when all places are taken, which spares an upload in vain."""
        if self._taken >= self._room:
            raise Refusal(429, "busy", "too many requests at once; try again shortly")

    def place(self) -> Place:
        """A place for one request, for use in a `with`; raises `Refusal` 429 when all are taken."""
        with self._lock:
            self.check_room()
            self._taken += 1
        return Place(self)

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Hand work to the threads; raises `Refusal` 503 outside `open` and `close`."""
        with self._lock:  # a pool that is being closed would raise
            if self._pool is None:
                raise Refusal(503, "stopped", "the service is starting or stopping")
            return self._pool.submit(work)

    def leave(self) -> None:
        """Give a place back."""
        with self._lock:
            self._taken -= 1

    def open(self) -> None:
        """Start the threads."""
        with self._lock:
            self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="fedvad-serve")

    def close(self) -> None:
        """Drop what waits; what runs ends by itself."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)


class Place:
    """One request's place. It is given back when its work has ended, even if nobody waits for it:
    a thread cannot be stopped, so a place freed earlier would let the work pile up.
    """

    def __init__(self, queue: WorkQueue) -> None:
        self._queue = queue
        self._stopped = threading.Event()
        self._future: Future[object] | None = None
        self._doing = "the request"
        self._at_end = ExitStack()
        self._at_end.callback(queue.leave)

    def at_end(self, callback: Callable[[], object]) -> None:
        """Call this when the work has ended."""
        self._at_end.callback(callback)

    def report(self, doing: str) -> None:
        """Say what the work is at now, for the answer to a request that takes too long."""
        self._doing = doing

    async def run(self, work: Callable[[Callable[[], bool]], T]) -> T:
        """The result of `work(stopped)` in a worker thread; `stopped()` tells it to give up.

        Raises `Refusal`: 503 when its turn did not come in time, 504 when the work took too long.
        """
        future = self._queue.submit(lambda: work(self._stopped.is_set))
        self._future = future  # type: ignore[assignment]
        try:
            waiting = asyncio.shield(asyncio.wrap_future(future))
            return await asyncio.wait_for(waiting, self._queue.timeout_s)
        except TimeoutError:
            self._stopped.set()
            if future.cancel():
                raise Refusal(503, "overloaded", "no worker was free in time") from None
            message = (
                f"{self._doing} was not done within {self._queue.timeout_s:g} s; send fewer or "
                "smaller images, or raise --timeout of fedvad serve"
            )
            raise Refusal(504, "timeout", message) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._future is None:
            self._at_end.close()
        else:
            self._stopped.set()
            self._future.add_done_callback(lambda _: self._at_end.close())
