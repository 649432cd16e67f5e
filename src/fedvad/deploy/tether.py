"""Beside a server or a site: ends what it started when it is gone, and keeps its log files plain.

Flower's processes watch their parent, but live on where it stays as a zombie or where a shell made
them ignore SIGINT. A small process of its own notices any end, `kill -9` included: the only other
end of a pipe closes. It imports nothing but the standard library until then.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

TOKEN = "FEDVAD_TETHER"  # in the environment of all that is started here
_COLOURS = re.compile(rb"\x1b\[[0-9;]*m")
_LAST_WORDS = 2.0  # seconds that a log may continue after the end


@contextmanager
def tethered() -> Iterator[None]:
    """Within it, whatever this process starts ends with it; logs to files carry no colour codes.

    Does nothing on Windows.
    """
    if os.name != "posix":
        yield
        return
    token = uuid.uuid4().hex
    alive, held = os.pipe()
    plain = not os.isatty(2)
    command = [sys.executable, __file__, str(alive), token]
    # a session of its own: Ctrl-C must not end it before the others
    companion = subprocess.Popen(
        command,
        stdin=subprocess.PIPE if plain else subprocess.DEVNULL,
        pass_fds=(alive,),
        start_new_session=True,
    )
    os.close(alive)
    os.environ[TOKEN] = token
    own = (os.dup(1), os.dup(2))
    if companion.stdin is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        # both into one stream: where they are files, they are one log mostly
        for stream in (1, 2):
            os.dup2(companion.stdin.fileno(), stream)
        companion.stdin.close()
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, before in zip((1, 2), own, strict=True):
            os.dup2(before, stream)
            os.close(before)
        del os.environ[TOKEN]
        os.close(held)
        with suppress(subprocess.TimeoutExpired):
            companion.wait(10)


def end_marked(token: str) -> int:
    """Kill every process of this user that has the token in its environment; how many."""
    import psutil

    ended = 0
    for _ in range(20):  # until none is left that was just starting another
        marked = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.pid != os.getpid() and process.environ().get(TOKEN) == token:
                    marked.append(process)
        if not marked:
            break
        for process in marked:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(marked, timeout=1)
        ended += len(marked)
    return ended


def _watch(alive: int, token: str) -> None:
    """Pass the log on until it ends; when the pipe `alive` closes, end all marked processes."""
    sources, rest, end = {alive, 0}, b"", None
    while sources and (end is None or time.monotonic() < end):
        ready, _, _ = select.select(list(sources), [], [], 0.2)
        for source in ready:
            data = os.read(source, 1 << 16)
            if not data:
                sources.discard(source)
                if source == alive:
                    end_marked(token)
                    end = time.monotonic() + _LAST_WORDS
            elif source == 0:
                *lines, rest = (rest + data).split(b"\n")
                _write(b"".join(line + b"\n" for line in lines))
    _write(rest)


def _write(data: bytes) -> None:
    data = _COLOURS.sub(b"", data)
    with suppress(OSError):  # a full disk costs lines of the log, not the watch
        while data:
            data = data[os.write(2, data) :]


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # its time comes when the others have ended
    _watch(int(sys.argv[1]), sys.argv[2])
