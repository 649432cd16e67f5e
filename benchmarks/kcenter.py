"""k-center coreset against anomalib's KCenterGreedy, on the same points.

    python benchmarks/kcenter.py [--data SET --weights F] [--sizes 20000:500,100000:2000]

Points are patches of the set's training images (ResNet-18), or drawn around 400 modes without
one. A size whose greedy loop would take minutes is timed on its first centres: each costs anomalib
one pass over all points, so the rest is that many times as much; the note says so.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from common import Clock, Row, alternate, clock_of, options, report, timed

from fedvad.data.folders import read_set
from fedvad.features.compat import import_timm
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor
from fedvad.memory.coreset import k_center
from fedvad.memory.distances import nearest

_TIMED_CENTRES = 20


def run(
    sizes: list[tuple[int, int]],
    *,
    data: Path | None = None,
    weights: Path | None = None,
    dim: int = 384,
    projections: tuple[int | None, ...] = (None, 64),
    limit_s: float = 60.0,
    repeat: int = 3,
    clock: Clock = perf_counter,
) -> list[Row]:
    """A row per (points, centres) and projection of ours.

    anomalib's loop is measured whole when it takes less than `limit_s`.
    """
    rows = []
    for n, m in sizes:
        points = drawn(n, dim) if data is None else patches(n, data, weights)
        tensor = torch.from_numpy(points)
        works = {str(p): partial(k_center, points, m, seed=0, projection=p) for p in projections}
        whole, how = estimate(tensor, m, clock)
        if whole < limit_s:
            seconds = alternate(works | {"theirs": partial(anomalib, tensor, m)}, repeat, clock)
            how = f"measured whole, covering radius {covering(tensor, anomalib(tensor, m)):.3f}"
        else:
            seconds = alternate(works, repeat, clock) | {"theirs": whole}
        for projection in projections:
            chosen = works[str(projection)]().indices
            where = "all dimensions" if projection is None else f"in {projection} dimensions"
            rows.append(
                Row(
                    f"{n} x {points.shape[1]} to {m}, {where}",
                    seconds[str(projection)],
                    seconds["theirs"],
                    "s",
                    f"covering radius {covering(tensor, chosen):.3f}; theirs {how}",
                )
            )
    return rows


def anomalib(points: torch.Tensor, m: int) -> np.ndarray:
    """The m points that KCenterGreedy chooses."""
    import_timm()
    from anomalib.models.components import KCenterGreedy

    sampler = KCenterGreedy(points, (m + 0.5) / len(points))
    return np.asarray(sampler.select_coreset_idxs())


def estimate(points: torch.Tensor, m: int, clock: Clock) -> tuple[float, str]:
    """Seconds of the whole loop from those of its first centres, and how that was found."""
    few = min(_TIMED_CENTRES, m // 4)
    anomalib(points, few)
    once = timed(lambda: anomalib(points, few), clock)
    each = (timed(lambda: anomalib(points, 3 * few), clock) - once) / (2 * few)
    return once + each * (m - few), f"from {3 * few} centres, {each * 1000:.0f} ms each"


def covering(points: torch.Tensor, chosen: np.ndarray) -> float:
    """Largest distance of a point to the nearest chosen one, in all dimensions."""
    return float(nearest(points, points[torch.from_numpy(chosen)])[0].max().sqrt())


def drawn(n: int, dim: int) -> np.ndarray:
    """Points (n, dim) around 400 modes."""
    rng = np.random.default_rng(0)
    modes = 3 * rng.normal(size=(400, dim)).astype(np.float32)
    noise = rng.normal(size=(n, dim)).astype(np.float32)
    return modes[rng.integers(0, 400, n)] + noise


def patches(n: int, data: Path, weights: Path | None) -> np.ndarray:
    """The first n patches (n, d) of a set's training images."""
    extractor = FeatureExtractor(FeatureConfig(backbone="resnet18", weights=weights))
    height, width, dim = extractor.grid
    paths = read_set(data).train.paths[: -(-n // (height * width))]
    found = [item.descriptors.reshape(-1, dim) for item in extractor.stream(paths)]
    points = np.concatenate(found)[:n].astype(np.float32)
    if len(points) < n:
        raise SystemExit(f"{data} has {len(points)} patches, not {n}")
    return points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--sizes", default="20000:500,100000:2000")
    parser.add_argument("--projections", default="0,64", help="dimensions; 0 is all")
    parser.add_argument("--repeat", type=int, default=3)
    options(parser)
    arguments = parser.parse_args()
    sizes = [tuple(map(int, size.split(":"))) for size in arguments.sizes.split(",")]
    rows = run(
        sizes,
        projections=tuple(int(p) or None for p in arguments.projections.split(",")),
        data=arguments.data,
        weights=arguments.weights,
        repeat=arguments.repeat,
        clock=clock_of(arguments),
    )
    report(rows, "k-center coreset against anomalib's KCenterGreedy", arguments)


if __name__ == "__main__":
    main()
