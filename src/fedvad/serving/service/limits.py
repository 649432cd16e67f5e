"""Nothing beyond its limit: bytes as they come in, requests in the house, seconds of work."""

from __future__ import annotations

import asyncio
import hmac
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType
from typing import Self, TypeVar

from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive

from fedvad.serving.service.settings import ServiceSettings

__all__ = ["FIELD", "Place", "Refusal", "WorkQueue", "check_token", "receive_files"]

FIELD = "files"
_TEXT_FIELDS = 8  # ignored, but forms may have some
_TEXT_BYTES = 4096
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


async def receive_files(request: Request, settings: ServiceSettings) -> list[UploadFile]:
    """The image files of a multipart request; beyond 1 MB each they lie on disk, not in memory.

    Raises `Refusal`: 415 no multipart, 413 too many bytes, 408 too slow, 400 damaged or too many
    parts, 422 no file.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise Refusal(415, "not_multipart", "send the images as multipart/form-data")
    limit = settings.max_total_bytes
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > limit:
        raise _too_large(limit)
    upload = Request(request.scope, _counted(request.receive, limit))
    try:
        async with asyncio.timeout(settings.timeout_s):
            form = await upload.form(
                max_files=settings.max_files, max_fields=_TEXT_FIELDS, max_part_size=_TEXT_BYTES
            )
    except TimeoutError:
        raise Refusal(408, "upload_timeout", "the upload took too long") from None
    except ClientDisconnect:  # nobody is left to read the answer
        raise Refusal(400, "disconnected", "the upload was broken off") from None
    except HTTPException as error:
        raise Refusal(400, "bad_multipart", error.detail) from None
    # some releases of starlette let the first through, and a charset of the client the second
    except (FormParserError, UnicodeError) as error:
        raise Refusal(400, "bad_multipart", str(error)) from None
    files = []
    for name, item in form.multi_items():
        if isinstance(item, UploadFile):
            if name == FIELD:
                files.append(item)
            else:
                await item.close()
    if not files:
        raise Refusal(422, "no_files", f"send at least one image file in the field {FIELD!r}")
    return files


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

    def place(self) -> Place:
        """A place for one request, for use in a `with`; raises `Refusal` 429 when all are taken."""
        with self._lock:
            if self._taken >= self._room:
                raise Refusal(429, "busy", "too many requests at once; try again shortly")
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
        self._at_end = ExitStack()
        self._at_end.callback(queue.leave)

    def at_end(self, callback: Callable[[], object]) -> None:
        """Call this when the work has ended."""
        self._at_end.callback(callback)

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
            raise Refusal(504, "timeout", "the images took too long; send fewer") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._future is None:
            self._at_end.close()
        else:
            self._stopped.set()
            self._future.add_done_callback(lambda _: self._at_end.close())


def _counted(receive: Receive, limit: int) -> Receive:
    received = 0

    async def counted() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise _too_large(limit)
        return message

    return counted


def _too_large(limit: int) -> Refusal:
    return Refusal(413, "too_large", f"a request may hold {limit} bytes; send fewer images at once")
