"""update, feedback and forget killed with SIGKILL at random times: is anything lost?

    python benchmarks/kills_living.py [--kills 100] [--seed 0]

Trains three tiny sites, acknowledges one answer, and kills the verbs in turn on copies of that run.
After each kill the run must load and be as before or as after, with the answer in it, and the same
command must end what was begun. Ends with exit code 1 otherwise. Needs a POSIX system.
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
        told: Counter[str] = Counter()
        wrong = 0
        for verb, (work, state, (before, after)) in verbs.items():
            times = []
            for _ in range(2):  # the first fills the cache
                shutil.copytree(whole, run)
                begin = time.perf_counter()
                os.waitpid(_start(work), 0)
                times.append(time.perf_counter() - begin)
                shutil.rmtree(run)
            for _ in range(given.kills // len(verbs)):
                shutil.copytree(whole, run)
                child = _start(work)
                time.sleep(float(rng.uniform(0, 1.05)) * times[-1])
                os.kill(child, signal.SIGKILL)
                killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
                found = state()
                kept = fedvad.list_feedback(run)[0]["name"] == "000.png"
                _, ended = os.waitpid(_start(work), 0)
                receipt = verb != "forget" or (run / "forgot-cedar.fedvad").exists()
                fine = found in (before, after) and kept and state() == after and receipt
                # what was done already is refused by name, not done twice
                fine &= os.waitstatus_to_exitcode(ended) == 0 or found == after
                wrong += not fine
                when = "before" if found == before else "after"
                told[f"{verb}: {'killed' if killed else 'ended'}, the run is as {when}"] += 1
                shutil.rmtree(run)
        for what, number in sorted(told.items()):
            print(f"  {number:4d} {what}")
        print(f"runs that lost something, or could not be ended: {wrong}")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
