"""Trainings killed with SIGKILL at random times: does --resume give the same detector to the bit?

    python benchmarks/kills.py [--kills 100] [--method feddymem] [--seed 0]

Draws three tiny sites, trains once without a kill, then kills trainings of the same data at times
drawn from the later two thirds of their usual time, one to three times each, and lets --resume
finish. Ends with exit code 1 when a detector differs, a resume fails, or an unfinished file is
left. Needs a POSIX system: each training is a fork, so that none pays for imports.
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
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fedvad
from fedvad.drawing.demo import write_demo
from fedvad.features import engine  # noqa: F401 - imported before the fork
from fedvad.runs.run_folder import DETECTOR_FILE
from fedvad.verbs import outputs


def _start(data: Path, out: Path, cache: Path, options: dict[str, Any]) -> int:
    """Process id of a fork that trains, or goes on."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        sys.stderr = open(out.with_suffix(".log"), "a")  # noqa: SIM115, PTH123 - until it dies
        fedvad.train(data, out, cache=cache, resume=True, **options)
        code = 0
    except BaseException as error:
        print(type(error).__name__, error, file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(code)


def _where(out: Path) -> str:
    """How far a killed training had come."""
    if not out.exists():
        return "nothing written"
    rounds = sorted(out.glob("state/round-*/complete.json"))
    if (out / "results.json").exists():
        return "results written"
    if (out / DETECTOR_FILE).exists():
        return "detector written"
    return f"after round {int(rounds[-1].parent.name[6:])}" if rounds else "before round 1"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--method", default="feddymem")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    # most of a tiny training's time, and nothing of its detector
    outputs.contact_sheet = lambda *given, **named: None
    outputs._write_report = lambda *given: None
    rng = np.random.default_rng(given.seed)
    options = {
        "backbone": "filterbank", "image_size": 64, "engine": "torch", "jobs": 1, "rounds": 3,
        "method": given.method,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, cache = folder / "data", folder / "cache"
        write_demo(data, plants=3, train=6, test_normal=2, test_defect=2, size=64)
        for out in ("cold", "whole"):  # the first fills the cache
            begin = time.perf_counter()
            os.waitpid(_start(data, folder / out, cache, options), 0)
            usual = time.perf_counter() - begin
        expected = (folder / "whole" / DETECTOR_FILE).read_bytes()
        places: Counter[str] = Counter()
        kills = runs = early = wrong = 0
        while kills < given.kills:
            out = folder / f"run-{runs}"
            runs += 1
            for _ in range(int(rng.integers(1, 4))):
                child = _start(data, out, cache, options)
                time.sleep(float(rng.uniform(0.3, 1.1)) * usual)
                os.kill(child, signal.SIGKILL)
                _, status = os.waitpid(child, 0)
                if os.WIFSIGNALED(status):
                    kills += 1
                    places[_where(out)] += 1
                else:
                    early += 1  # it had ended before
            _, status = os.waitpid(_start(data, out, cache, options), 0)
            same = (
                status == 0
                and (out / DETECTOR_FILE).read_bytes() == expected
                and not [p for p in out.rglob(".*") if p.is_file()]
                and not (out / "state").exists()
            )
            if not same:
                wrong += 1
                log = out.with_suffix(".log")
                print(f"run {runs} differs: {log.read_text() if log.exists() else ''}")
            shutil.rmtree(out, ignore_errors=True)
        print(f"one training takes {usual:.2f} s; {kills} kills in {runs} runs, {early} too late")
        for place, count in places.most_common():
            print(f"  {count:4d} killed: {place}")
        print(f"detectors that differ, or runs that fail to resume: {wrong}")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
