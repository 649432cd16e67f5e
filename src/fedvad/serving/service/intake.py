"""Uploads on their way in: their bytes counted, their number bounded, the slow ones given up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from python_multipart.exceptions import FormParserError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from fedvad.serving.service.limits import Refusal
from fedvad.serving.service.settings import ServiceSettings

FIELD = "files"
_TEXT_FIELDS = 8  # refused by name, so a few must be read
_TEXT_BYTES = 4096
_GRACE = 5.0  # seconds before the slowest rate counts
_SLOWEST = 10_000  # bytes per second, on average, that an upload needs to continue
_SETTLED = 1.0  # seconds after which an upload may have to give way to another
_UNHURRIED = 50_000  # bytes per second, on average, below which it has to
_HOW = "send image files as multipart/form-data in the field 'files': curl -F files=@part.png URL"


class Intake:
    """The uploads of one service, which are received before they take a place in its queue.

    A slow one blocks nobody: it needs a least rate, and where the room is full, the slowest one
    is given up for the next, first among those of the same client.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings
        self._uploads: list[_Upload] = []

    @property
    def under_way(self) -> int:
        """Uploads that are being received now."""
        return len(self._uploads)

    async def files(self, request: Request) -> list[UploadFile]:
        """The image files of a multipart request; beyond 1 MB each they lie on disk.

        Raises `Refusal`: 415 no multipart, 413 too many bytes, 408 too slow, 400 damaged or too
        many parts, 422 no file or an unknown field, 429 too many uploads at once.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "multipart/form-data":
            found = f"this request has {kind[:100]}" if kind else "this request names no type"
            raise Refusal(415, "not_multipart", f"{_HOW} ({found})")
        limit = self._settings.max_total_bytes
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced[:20]) > limit:
            raise _too_large(limit)
        client = request.client.host if request.client else ""
        async with self._receiving(client) as upload:
            form = await self._form(request, upload)
        files, wrong = [], None
        for name, item in form.multi_items():
            if isinstance(item, UploadFile) and name == FIELD:
                files.append(item)
            else:
                wrong = wrong or _wrong_field(name, item)
        if wrong is None and not files:
            wrong = Refusal(422, "no_files", f"the request holds no file; {_HOW}")
        if wrong is not None:
            await form.close()
            raise wrong
        return files

    async def _form(self, request: Request, upload: _Upload) -> FormData:
        limit = self._settings.max_total_bytes

        async def counted() -> Message:
            message = await request.receive()
            upload.count(len(message.get("body", b"")))
            if upload.received > limit:
                raise _too_large(limit)
            return message

        try:
            return await Request(request.scope, counted).form(
                max_files=self._settings.max_files,
                max_fields=_TEXT_FIELDS,
                max_part_size=_TEXT_BYTES,
            )
        except ClientDisconnect:  # nobody is left to read the answer
            raise Refusal(400, "disconnected", "the upload was broken off") from None
        except HTTPException as error:
            hint = "see --max-files of fedvad serve" if "files" in error.detail else _HOW
            raise Refusal(400, "bad_multipart", f"{error.detail.rstrip('.')}; {hint}") from None
        # some releases of starlette let the first through, and a charset of the client the second
        except (FormParserError, UnicodeError) as error:
            raise Refusal(400, "bad_multipart", f"{error}; {_HOW}") from None

    @asynccontextmanager
    async def _receiving(self, client: str) -> AsyncIterator[_Upload]:
        self._make_room([u for u in self._uploads if u.client == client],
                        self._settings.uploads_per_client, "--uploads-per-client")  # fmt: skip
        self._make_room(self._uploads, self._settings.uploads, "--uploads")
        upload = _Upload(client, self._settings.timeout_s)
        self._uploads.append(upload)
        try:
            async with upload.timer:
                yield upload
        except TimeoutError:
            raise upload.too_slow() from None
        finally:
            if upload in self._uploads:
                self._uploads.remove(upload)

    def _make_room(self, crowd: list[_Upload], room: int, option: str) -> None:
        if len(crowd) < room:
            return
        slowest = min(crowd, key=_Upload.rate)
        if slowest.seconds() < _SETTLED or slowest.rate() > _UNHURRIED:
            message = f"{room} uploads are under way already ({option}); try again shortly"
            raise Refusal(429, "busy", message)
        slowest.give_way()
        self._uploads.remove(slowest)


class _Upload:
    """One of them. `timer` is entered while it lasts and moves as its bytes come in."""

    def __init__(self, client: str, timeout_s: float) -> None:
        self.client = client
        self.received = 0
        self._timeout_s = timeout_s
        self._gave_way = False
        self._clock = asyncio.get_running_loop().time
        self._began = self._clock()
        self.timer = asyncio.timeout_at(self._end())

    def seconds(self) -> float:
        return self._clock() - self._began

    def rate(self) -> float:
        return self.received / max(self.seconds(), 1e-3)

    def count(self, size: int) -> None:
        self.received += size
        if not self._gave_way:
            self._move(self._end())

    def give_way(self) -> None:
        self._gave_way = True
        self._move(self._began)

    def too_slow(self) -> Refusal:
        if self._gave_way:
            why = "it was the slowest of many, and others were waiting"
        elif self.seconds() >= self._timeout_s:
            why = f"it took longer than {self._timeout_s:g} s (--timeout of fedvad serve)"
        else:
            why = f"it came at less than {_SLOWEST // 1000} kB per second"
        return Refusal(408, "upload_timeout", f"the upload was given up: {why}")

    def _end(self) -> float:
        return self._began + min(self._timeout_s, _GRACE + self.received / _SLOWEST)

    def _move(self, end: float) -> None:
        if not self.timer.expired():
            self.timer.reschedule(end)


def _wrong_field(name: str, item: UploadFile | str) -> Refusal:
    if name == FIELD:
        return Refusal(422, "no_files", f"the field {FIELD!r} holds text, no file; {_HOW}")
    what = "file" if isinstance(item, UploadFile) else "text"
    field = name[:50].encode("ascii", "backslashreplace").decode()
    return Refusal(422, "unknown_field", f"the form has a {what} in the field {field!r}; {_HOW}")


def _too_large(limit: int) -> Refusal:
    message = (
        f"a request may hold {limit} bytes; send fewer images at once, or raise --max-total-mb "
        "of fedvad serve"
    )
    return Refusal(413, "too_large", message)
