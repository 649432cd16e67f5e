"""update, feedback, forget and watch killed with SIGKILL at random times: is anything lost?

    python benchmarks/kills_living.py [--kills 100] [--seed 0]

Trains three tiny sites, acknowledges one answer, and kills the verbs in turn on copies of that run.
After each kill the run must load and be as before or as after, with the answer in it, and the same
command must end what was begun. A watch must have in its log what it gave before a kill, and every
image once in the end. Ends with exit code 1 otherwise. Needs a POSIX system.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import fedvad
from fedvad.drawing.demo import write_demo
from fedvad.features import engine  # noqa: F401 - imported before the fork
from fedvad.federation.signed import generate_keys
from fedvad.serving.watch.log import read_log


def _start(work: Callable[[], object]) -> int:
    """Process id of a fork that does some work."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    except fedvad.FedvadError:
        code = 2
    finally:
        os._exit(code)


def watch_kills(run: Path, image: Path, folder: Path, kills: int, seed: int) -> list[str]:
    """Kill a watch of a folder that fills, that many times; what went wrong."""
    rng, line, out, wrong = np.random.default_rng(seed), folder / "line", folder / "out", []
    options = {"out": out, "site": "alder", "once": True, "every": 0.01}
    line.mkdir(parents=True)
    given: list[str] = []

    def work(writer: int) -> None:
        for row in fedvad.watch(run, line, **options):
            os.write(writer, f"{row['number']} {row['path']}\n".encode())

    begin = time.perf_counter()
    list(fedvad.watch(run, image.parent, **(options | {"out": folder / "first"})))
    length = time.perf_counter() - begin
    for kill in range(kills + 1):
        for i in range(8):
            shutil.copy(image, line / f"{kill:03d}-{i:02d}.png")
        reader, writer = os.pipe()
        child = _start(lambda writer=writer: work(writer))
        os.close(writer)
        if kill < kills:  # the last one may end
            time.sleep(float(rng.uniform(0.2, 2)) * length)
            os.kill(child, signal.SIGKILL)
        with os.fdopen(reader) as lines:
            given += lines.read().splitlines()
        os.waitpid(child, 0)
    rows = list(read_log(out))
    kept = [f"{row['number']} {row['path']}" for row in rows]
    wrong += [f"lost: {row}" for row in given if row not in kept]
    paths = Counter(row["path"] for row in rows)
    wrong += [
        f"{path} {paths[str(path)]} times" for path in line.iterdir() if paths[str(path)] != 1
    ]
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(given.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, cache, whole, run = (folder / n for n in ("data", "cache", "whole", "run"))
        write_demo(data, plants=3, train=6, test_normal=3, test_defect=2, size=64)
        fedvad.train(data, whole, cache=cache, backbone="filterbank", image_size=64, engine="torch")
        good = data / "alder/test/good"
        fedvad.feedback(whole, good / "000.png", "normal", site="alder", cache=cache)
        generate_keys(folder, "key")
        key = folder / "key.key"
        verbs: dict[str, tuple[Callable[[], object], Callable[[], int], tuple[int, int]]] = {
            "update": (
                lambda: fedvad.update(run, good, site="alder", cache=cache),
                lambda: fedvad.load(run).sites["alder"].n_images,
                (6, 9),
            ),
            "feedback": (
                lambda: fedvad.feedback(run, good / "001.png", "defect", site="alder", cache=cache),
                lambda: len(fedvad.list_feedback(run)),
                (1, 2),
            ),
            "forget": (
                lambda: fedvad.forget(run, site="cedar", key=key),
                lambda: len(fedvad.load(run).sites),
                (3, 2),
            ),
        }
        reported: Counter[str] = Counter()
        wrong = 0
        for verb, (work, state, (before, after)) in verbs.items():
            times = []
            for _ in range(2):  # the first fills the cache
                shutil.copytree(whole, run)
                begin = time.perf_counter()
                os.waitpid(_start(work), 0)
                times.append(time.perf_counter() - begin)
                shutil.rmtree(run)
            for _ in range(given.kills // (len(verbs) + 1)):
                shutil.copytree(whole, run)
                child = _start(work)
                time.sleep(float(rng.uniform(0, 1.05)) * times[-1])
                os.kill(child, signal.SIGKILL)
                killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
                found = state()
                kept = fedvad.list_feedback(run)[0]["name"].endswith("000.png")
                _, ended = os.waitpid(_start(work), 0)
                receipt = verb != "forget" or (run / "forgot-cedar.fedvad").exists()
                fine = found in (before, after) and kept and state() == after and receipt
                # what was done already is refused by name, not done twice
                fine &= os.waitstatus_to_exitcode(ended) == 0 or found == after
                wrong += not fine
                when = "before" if found == before else "after"
                reported[f"{verb}: {'killed' if killed else 'ended'}, the run is as {when}"] += 1
                shutil.rmtree(run)
        kills = given.kills - len(verbs) * (given.kills // (len(verbs) + 1))
        lost = watch_kills(whole, good / "000.png", folder / "watched", kills, given.seed)
        reported["watch: killed"] += kills
        wrong += len(lost)
        print(*lost, sep="\n")
        for what, number in sorted(reported.items()):
            print(f"  {number:4d} {what}")
        print(f"runs that lost something, or could not be ended: {wrong}")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
