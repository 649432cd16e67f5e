"""What the comparisons share: one kind of row, one table, and fair timing."""

from __future__ import annotations

import gc
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev
from time import perf_counter, process_time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedvad.features.extractor import FeatureExtractor

Clock = Callable[[], float]


@dataclass(frozen=True)
class Row:
    """One comparison; `ours` and `theirs` are in `unit`, and less is better.

    theirs: None where there is nothing to compare with.
    """

    name: str
    ours: float
    theirs: float | None
    unit: str
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """theirs / ours: how many times as fast, or as small, ours is."""
        return None if self.theirs is None else self.theirs / self.ours


def table(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table."""
    lines = ["| what | ours | theirs | unit | theirs / ours | note |", "| --- " * 6 + "|"]
    for row in rows:
        theirs = "–" if row.theirs is None else f"{row.theirs:.4g}"
        ratio = "–" if row.ratio is None else f"{row.ratio:.2f}"
        cells = (row.name, f"{row.ours:.4g}", theirs, row.unit, ratio, row.note)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def options(parser: ArgumentParser) -> None:
    """The flag that every comparison has."""
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="processor time of all threads, not wall time: for a machine that others use, too",
    )


def backbones_options(parser: ArgumentParser) -> None:
    """The flags of comparisons over backbones; `dict(arguments.backbones)` gives their files.

    A file is None for a backbone that brings its weights.
    """

    def named(text: str) -> tuple[str, Path | None]:
        name, _, file = text.partition("=")
        return name, Path(file) if file else None

    parser.add_argument("backbones", nargs="+", type=named, metavar="NAME=WEIGHTS")
    parser.add_argument("--image-size", type=int, default=256)
    options(parser)


def clock_of(arguments: Namespace) -> Clock:
    """What the flag says about how to measure time."""
    return process_time if arguments.cpu_time else perf_counter


def report(rows: Sequence[Row], title: str, arguments: Namespace, remark: str = "") -> None:
    """Print title, machine and table as Markdown."""
    if arguments.cpu_time:
        remark = f"Seconds are processor time. {remark}"
    print(f"# {title}\n\n{machine()}. {remark}".rstrip() + f"\n\n{table(rows)}")


def machine() -> str:
    """The machine in words."""
    import torch

    gpu = "a GPU (not used)" if torch.cuda.is_available() else "no GPU"
    threads, used = os.cpu_count(), torch.get_num_threads()
    return (
        f"{threads} CPU threads ({used} for PyTorch), {gpu}, load average {os.getloadavg()[0]:.1f}"
    )


def timed(work: Callable[[], object], clock: Clock = perf_counter) -> float:
    """Seconds that `work` takes once."""
    gc.collect()
    start = clock()
    work()
    return clock() - start


def alternate(
    works: dict[str, Callable[[], object]],
    repeat: int,
    clock: Clock = perf_counter,
    *,
    warm_up: int = 0,
) -> dict[str, float]:
    """Median seconds of each, measured in turn, so that a busy machine slows all alike.

    warm_up: times that each is done before, untimed, where the first time differs.
    """
    for _ in range(warm_up):
        for work in works.values():
            work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeat):
        for name, work in works.items():
            seconds[name].append(timed(work, clock))
    return {name: median(values) for name, values in seconds.items()}


def spread(values: Sequence[float | None], digits: int = 4) -> str:
    """Mean ± standard deviation; a dash where one is missing: no masks, or one class alone."""
    known = [v for v in values if v is not None]
    if len(known) < len(values) or not known:
        return "–"
    around = f" ± {stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{fmean(known):.{digits}f}{around}"


def backbone_options(parser: ArgumentParser) -> None:
    """The flags of `extractor`."""
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--layers", default="1,2,3")
    parser.add_argument("--size", type=int, default=256, help="pixels a side")
    parser.add_argument("--device", default="cpu")


def extractor(arguments: Namespace) -> FeatureExtractor:
    """Features as `backbone_options` describe them."""
    from fedvad.features.config import FeatureConfig
    from fedvad.features.extractor import FeatureExtractor

    return FeatureExtractor(
        FeatureConfig(
            backbone=arguments.backbone,
            weights=arguments.weights,
            layers=tuple(map(int, arguments.layers.split(","))),
            image_size=arguments.size,
            engine="openvino" if arguments.device == "cpu" else "torch",
            device=arguments.device,
        )
    )
