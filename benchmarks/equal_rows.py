"""Memories of equal size side by side: what merging and scoring make of the same uploads.

    python benchmarks/equal_rows.py DATA --weights F --out DIR [--split S] [--sizes 500,1000,2000]

Every site sends 1288 rows in one round: a coreset, averages of similar patches, or half of each.
Of them the server makes memories of each size in each way, some with generators that the sites
train (`pairs.py` for two of them). Memories of a codec have more rows of fewer bytes, as many bytes
in all both ways (`pq` only up: its memory comes down in float16). Every memory scores each test
image plainly, by spread and by density. Parts of one set are those of seed 0. The scores of a size
and seed are kept in DIR and not found again. Ends with a Markdown table: mean over seeds (±), and
what a memory scored by density, the default, gains over federated PatchCore of the same size
(k-center of coresets) at the best of its scorings, paired, 95 %.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Literal

import numpy as np
import torch
from pairs import sample, train_on_pairs

from fedvad.data.folders import Site
from fedvad.detectors.memory.generator import Generator
from fedvad.detectors.memory.metric_loss import MetricLossConfig, train_generator
from fedvad.detectors.scoring import ScoringConfig, distance_scale, mean_of_highest, smooth
from fedvad.evaluation.bootstrap import mean_paired_gain_of_runs
from fedvad.evaluation.metrics import image_auroc
from fedvad.features.cache import DescriptorCache, default_cache_root
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.codecs import (
    Precision,
    downlink_precision,
    overhead_bytes,
    rounding,
    row_bytes,
)
from fedvad.half import to_float
from fedvad.memory.bank import FloatArray, MemoryBank, concatenate
from fedvad.memory.distances import columns_of, extended, row_argmin
from fedvad.memory.kmeans import weighted_kmeans
from fedvad.memory.merge import merge_banks
from fedvad.memory.reduce import cells, reduce_patches
from fedvad.runs.config import resolve_config
from fedvad.runs.data import load_sites

UPLOAD = 1288  # rows of 384 values that fit into the default's megabyte
SCORINGS = {
    "plain": ScoringConfig(density=0),
    "spread": ScoringConfig(density=0, map="spread"),
    "density": ScoringConfig(),
}
PATCHCORE = "coreset, k-center"
# of what sites send, exponents of the weights in the server's k-means
TEMPERS = {"coreset": (1.0, 0.5, 0.25, 0.0), "averages": (1.0, 0.0), "half of each": (0.25,)}
HYPERSPHERE, INFONCE = MetricLossConfig(), MetricLossConfig(loss="infonce", identity=1.0)
TEMPERATURES = (0.02, 0.5)  # of InfoNCE, beside its 0.1
CODECS: tuple[Precision, ...] = ("int8", "int5", "pq")
DEFLATED = 187 / 392  # bytes of a row in `int5`, as measured on ResNet-18

Scores = dict[str, dict[str, list[float]]]  # by scoring, by site
Banks = dict[str, MemoryBank]


@dataclass(frozen=True)
class Memory:
    """A global memory; generators: of the sites, where any were trained. moved: its rows went
    through them before they were sent, as in an earlier fedvad.
    """

    bank: MemoryBank
    generators: Mapping[str, Generator] = field(default_factory=dict)
    moved: bool = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--split")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--sizes", default="500,1000,2000")
    parser.add_argument("--only", help="names of memories, separated by semicolons")
    parser.add_argument("--every", type=int, default=1, help="score each n-th test image only")
    parser.add_argument("--weights", type=Path, required=True)
    arguments = parser.parse_args()
    config = resolve_config(method="patchcore", weights=arguments.weights)
    features = FeatureExtractor(config.features(), DescriptorCache(default_cache_root()))
    sizes, seeds = arguments.sizes.split(","), arguments.seeds.split(",")
    sites = load_sites(arguments.data, arguments.split, 0)
    sites = [replace(site, test=site.test[:: arguments.every]) for site in sites]
    runs = []
    for seed in map(int, seeds):
        run: dict = {"labels": {site.name: [item.label for item in site.test] for site in sites}}
        taken: Taken | None = None
        for size in sizes:
            file = arguments.out / f"{size}-rows-seed-{seed}.json"
            if not file.is_file():
                taken = taken or Taken(sites, features, seed)
                made = memories(taken, int(size))
                names = arguments.only.split(";") if arguments.only else list(made)
                found = scored(sites, features, {name: made[name]() for name in names})
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(found))
            cell = json.loads(file.read_text())
            run.setdefault("scores", {}).update({f"{name}@{size}": cell[name] for name in cell})
        runs.append(run)
    print(table(runs))


def scored(
    sites: Sequence[Site], features: FeatureExtractor, made: Mapping[str, Memory]
) -> dict[str, Scores]:
    """Scores of the test images by each memory."""
    scores: dict[str, Scores] = {name: {how: {} for how in SCORINGS} for name in made}
    for site in sites:
        lenses = {name: _Lens(memory, site.name) for name, memory in made.items()}
        for item in features.stream([image.path for image in site.test]):
            descriptors = to_float(item.descriptors)
            for name, lens in lenses.items():
                for how, value in lens.scores(descriptors).items():
                    scores[name][how].setdefault(site.name, []).append(value)
    return scores


class Taken:
    """What the sites choose of their patches with one seed, for memories of any size."""

    def __init__(self, sites: Sequence[Site], features: FeatureExtractor, seed: int) -> None:
        self.seed = seed
        self.samples = {
            site.name: sample(site, features, seed * 10_007 + i) for i, site in enumerate(sites)
        }
        self.sent = cache(self._sent)
        self.paired = cache(self._paired)

    def _sent(self, kind: str, precision: Precision = "float16") -> Banks:
        return {
            name: upload(kind, own.patches, self.seed * 10_007 + i, precision)
            for i, (name, own) in enumerate(self.samples.items())
        }

    def _paired(self, negatives: Literal["batch", "regions"]) -> dict[str, Generator]:
        return {
            name: train_on_pairs(own, negatives, seed=self.seed)
            for name, own in self.samples.items()
        }


def as_many_bytes(rows: int, precision: Precision, dim: int) -> int:
    """Rows in another precision that take as many bytes as `rows` in float16, weights included."""
    beside = row_bytes("float16", dim) + 6
    each = (row_bytes(precision, dim) + 6) * (DEFLATED if precision == "int5" else 1)
    return round((rows * beside - overhead_bytes(precision, dim)) / each)


def upload(kind: str, patches: FloatArray, seed: int, precision: Precision) -> MemoryBank:
    """What a site sends of its patches."""
    wanted = min(len(patches), as_many_bytes(UPLOAD, precision, patches.shape[1]))

    def coreset(rows: int) -> MemoryBank:
        return reduce_patches(patches, rows, mode="coreset", seed=seed, projection=64)

    def averages(rows: int) -> MemoryBank:
        return kmeans(MemoryBank.of_patches(patches), rows, seed)

    half = wanted // 2
    if kind == "half of each":
        rows = concatenate([coreset(half), averages(half)])
    else:
        rows = (coreset if kind == "coreset" else averages)(wanted)
    return rounded(rows, precision).rescaled(float(len(patches)))


def rounded(bank: MemoryBank, precision: Precision) -> MemoryBank:
    """A memory after its way over the wire."""
    return replace(bank, vectors=rounding(precision)(bank.vectors))


def kmeans(bank: MemoryBank, rows: int, seed: int, temper: float = 1.0) -> MemoryBank:
    """As `weighted_kmeans`, with as few steps as a table can wait for."""
    return weighted_kmeans(
        bank, rows, seed=seed, restarts=1, max_iterations=20, projection=64, temper=temper
    )


def memories(taken: Taken, size: int) -> dict[str, Callable[[], Memory]]:
    """How to make memories of `size` rows, by name."""

    seed, sent, paired = taken.seed, taken.sent, taken.paired

    @cache
    def bank(kind: str, temper: float | None = None) -> MemoryBank:
        return (
            k_centers(sent(kind), size, seed)
            if temper is None
            else means(sent(kind), size, seed, temper)
        )

    def halves() -> Memory:
        few = means(sent("averages"), size // 2, seed, 0.0)
        return Memory(concatenate([few, k_centers(sent("coreset"), size - len(few), seed)]))

    def pulled() -> Memory:
        whole = concatenate(list(sent("coreset").values())).vectors
        return Memory(cells(whole, bank("coreset").vectors, pull=0.5))

    @cache
    def generators(loss: MetricLossConfig) -> dict[str, Generator]:
        anchors = bank("coreset", 0.0).vectors
        start = Generator.identity(anchors.shape[1])
        return {
            name: train_generator(start, own.patches, anchors, loss, seed=seed)[0]
            for name, own in taken.samples.items()
        }

    def coded(precision: Precision, temper: float | None) -> Memory:
        banks, down = sent("coreset", precision), downlink_precision(precision)
        rows = as_many_bytes(size, down, next(iter(banks.values())).dim)
        rows = min(rows, sum(map(len, banks.values())))
        whole = k_centers(banks, rows, seed) if temper is None else means(banks, rows, seed, temper)
        return Memory(rounded(whole, down))

    def moved() -> Memory:
        trained = generators(HYPERSPHERE)
        rows = {name: trained[name].embedded(own) for name, own in sent("coreset").items()}
        return Memory(means(rows, size, seed, 0.0), trained, moved=True)

    made: dict[str, Callable[[], Memory]] = {}
    for kind, tempers in TEMPERS.items():
        made[f"{kind}, k-center"] = lambda kind=kind: Memory(bank(kind))
        for temper in tempers:
            made[f"{kind}, k-means ^{temper:g}"] = lambda k=kind, t=temper: Memory(bank(k, t))
    made |= {"averages and extremes": halves, "coreset, k-center pulled half": pulled}
    losses = {"hypersphere": HYPERSPHERE, "infonce": INFONCE}
    losses |= {f"infonce at {t:g}": replace(INFONCE, temperature=t) for t in TEMPERATURES}
    for name, loss in losses.items():
        made[f"coreset, k-means ^0, {name}"] = lambda loss=loss: Memory(
            bank("coreset", 0.0), generators(loss)
        )
    for name, loss in losses.items():
        made[f"coreset, k-center, {name}"] = lambda loss=loss: Memory(
            bank("coreset"), generators(loss)
        )
    made["coreset, k-center, other images"] = lambda: Memory(bank("coreset"), paired("batch"))
    made["coreset, k-center, other regions"] = lambda: Memory(bank("coreset"), paired("regions"))
    made["coreset, k-means ^0, hypersphere, rows moved"] = moved
    for codec in CODECS:
        for merge, power in (("k-center", None), ("k-means ^0", 0.0)):
            made[f"coreset, {merge}, {codec}"] = lambda c=codec, t=power: coded(c, t)
    return made


def k_centers(banks: Banks, size: int, seed: int) -> MemoryBank:
    """The server's k-center."""
    return merge_banks(banks, mode="kcenter", size=size, seed=seed)


def means(banks: Banks, size: int, seed: int, temper: float) -> MemoryBank:
    """The server's k-means."""
    return kmeans(concatenate(list(banks.values())), size, seed, temper)


class _Lens:
    """A memory as one site sees it."""

    def __init__(self, memory: Memory, site: str) -> None:
        self.embed = memory.generators.get(site, Generator.identity(memory.bank.dim))
        seen = memory.bank if memory.moved else self.embed.embedded(memory.bank)
        self.vectors = torch.from_numpy(seen.vectors)
        self.columns = columns_of(self.vectors)
        self.scales = {name: distance_scale(seen, how) for name, how in SCORINGS.items()}

    def scores(self, descriptors: FloatArray) -> dict[str, float]:
        """Of (h, w, d) descriptors by scoring: one exact search serves all."""
        height, width, dim = descriptors.shape
        points = torch.from_numpy(self.embed(descriptors.reshape(-1, dim)))
        row = row_argmin(extended(points) @ self.columns)
        apart = torch.linalg.vector_norm(points - self.vectors[row], dim=1).numpy()
        found = {}
        for name, scale in self.scales.items():
            map_ = apart if scale is None else apart / scale[row.numpy(), 0]
            how = SCORINGS[name]
            smoothed = smooth(map_.reshape(height, width), how.smooth)
            found[name] = mean_of_highest(smoothed, how.count(map_.size))
        return found


def table(runs: Sequence[dict]) -> str:
    """One row by memory and size."""
    names = list(runs[0]["scores"])
    lines = [
        f"| memory | rows | {' | '.join(SCORINGS)} | gain over federated PatchCore |",
        "| --- | ---: |" + " ---: |" * (len(SCORINGS) + 1),
    ]
    found = {name: {how: _aurocs(runs, name, how) for how in SCORINGS} for name in names}
    for name in names:
        kind, size = name.split("@")
        rival = f"{PATCHCORE}@{size}"
        best = max(SCORINGS, key=lambda how: fmean(found[rival][how]))
        pairs = [
            [
                (run["scores"][name]["density"][site], run["scores"][rival][best][site], labels)
                for site, labels in run["labels"].items()
            ]
            for run in runs
        ]
        gain = mean_paired_gain_of_runs(pairs)
        cells = [kind, size, *map(_written, found[name].values())]
        cells.append(f"{gain.gain:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _aurocs(runs: Sequence[dict], name: str, scoring: str) -> list[float]:
    """Mean of the sites, by run."""
    return [
        fmean(
            image_auroc(np.asarray(run["scores"][name][scoring][site]), np.asarray(labels))
            for site, labels in run["labels"].items()
        )
        for run in runs
    ]


def _written(values: Sequence[float]) -> str:
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{fmean(values):.3f}{spread}"


if __name__ == "__main__":
    main()
