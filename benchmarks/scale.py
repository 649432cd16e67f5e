"""Thousands of simulated sites in a tree of regional servers: time, memory, bytes, AUROC.

    python benchmarks/scale.py DATA --weights F [--cache DIR] [--sites 10000] [--region 100]

Every site has one normal image of a real set, dealt with replacement, and sends 12 of its patches.
Regional servers merge their sites' uploads and send the result on as if each were a site; a root
server merges the regions. All three speak through the real server and exchange. In each round a
share of the sites is away for good and replaced by new ones, another share answers a round late;
30 % lie: half of the liars fill whole regions, half are strewn among honest sites.
Liars send the patches of defective test images that are farthest from normal ones, from every
second such image; the others are scored, so labels serve the attacker and the measurement, never
the defence.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fedvad.detectors.memory.generator import Generator
from fedvad.detectors.scoring import MemoryScorer, ScoringConfig
from fedvad.errors import FederationError
from fedvad.evaluation.metrics import image_auroc
from fedvad.features.cache import DescriptorCache
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.defence.robust import RobustConfig
from fedvad.federation.exchange.memory import MemoryExchange
from fedvad.federation.ledger import peak_rss_mb
from fedvad.federation.payload import Manifest, Payload, bank_arrays, bank_from
from fedvad.federation.server import Server
from fedvad.half import to_float
from fedvad.memory.bank import FloatArray, MemoryBank
from fedvad.memory.distances import nearest
from fedvad.runs.config import resolve_config
from fedvad.runs.data import load_sites

LIARS, AWAY, LATE = 0.3, 0.1, 0.1
CASES = (False, False), (True, False), (True, True)  # whether sites lie, and the server defends
PATCHES, OF_IMAGE = 1024, 128  # of an image of 256 pixels, and those that sites draw from


class Tree:
    """Regions and a root, and what travelled between them."""

    def __init__(self, dim: int, regions: Sequence[str], *, sizes: tuple[int, int], robust: bool):
        self.dim = dim
        defence = RobustConfig() if robust else None
        self.regions = {name: self._server(sizes[0], defence) for name in regions}
        self.root = self._server(sizes[1], defence)
        self.bytes_up = self.bytes_regions = self.refused = self.skipped = 0

    def _server(self, size: int, defence: RobustConfig | None) -> Server:
        exchange = MemoryExchange(
            features="scale", dim=self.dim, merge_mode="kcenter", size=size, defence=defence
        )
        return Server(exchange, missing="keep")

    def round(self, number: int, sent: dict[str, dict[str, list[bytes]]]) -> MemoryBank:
        """One round of messages by region and site; the memory of all."""
        self.root.open(number)
        for name, server in self.regions.items():
            server.open(number)
            for site, messages in sorted(sent[name].items()):
                receipt = server.receive(site, messages)
                self.bytes_up += receipt.size
            try:
                merged = server.close()
            except FederationError:  # nobody answered: what the root has of it stays
                self.skipped += 1
                continue
            self.refused += len(server.ledger.rounds[-1].distrusted)
            message = upload(name, number, bank_from(merged)).to_bytes()
            self.bytes_regions += self.root.receive(name, [message]).size
        return bank_from(self.root.close())


def upload(site: str, round_: int, bank: MemoryBank) -> Payload:
    patches = max(1, round(bank.total_weight))
    manifest = Manifest(
        kind="upload", site=site, round=round_, features="scale",
        generator=Generator.identity(bank.dim).hash(), n_images=patches, n_patches=patches,
    )  # fmt: skip
    plain = MemoryBank(bank.vectors, bank.weights, bank.spread)
    return Payload(manifest, bank_arrays(plain, "float16"))


def simulate(
    normal: Sequence[FloatArray],
    defects: Sequence[FloatArray],
    *,
    sites: int,
    region: int,
    rows: int = 12,
    rounds: int = 2,
    sizes: tuple[int, int] = (120, 2000),
    lying: bool = True,
    robust: bool = True,
    seed: int = 0,
) -> tuple[MemoryBank, dict[str, Any]]:
    """The memory of all sites, and what it took; normal, defects: (n, d) patches of images."""
    rng = np.random.default_rng(seed)
    count = max(3, sites // region)
    names = [f"region-{i:04}" for i in range(count)]
    whole = round(LIARS / 2 * count) if lying else 0
    strewn = LIARS / 2 * count / max(1, count - whole) if lying else 0.0
    lies = {
        (name, i): k < whole or rng.random() < strewn
        for k, name in enumerate(names)
        for i in range(region)
    }
    tree = Tree(normal[0].shape[1], names, sizes=sizes, robust=robust)
    people = {key: f"site-{key[1]}" for key in lies}
    waiting: dict[tuple[str, int], bytes] = {}
    start = process_time()
    bank = None
    for number in range(1, rounds + 1):
        sent: dict[str, dict[str, list[bytes]]] = {name: {} for name in names}
        for key, lie in lies.items():
            if rng.random() < AWAY:
                people[key] = f"site-{key[1]}-{number}"  # another one takes its place
                waiting.pop(key, None)
            images = defects if lie else normal
            own = images[rng.integers(len(images))]
            chosen = own[rng.permutation(len(own))[:rows]]
            message = upload(people[key], number, MemoryBank.of_patches(chosen)).to_bytes()
            before = [waiting.pop(key)] if key in waiting else []
            if rng.random() < LATE:
                waiting[key] = message
            elif before or rng.random() >= AWAY:
                sent[key[0]][people[key]] = [*before, message]
        bank = tree.round(number, sent)
    assert bank is not None
    return bank, {
        "sites": len(lies), "regions": count, "liars": sum(lies.values()) / len(lies),
        "seconds": process_time() - start, "rounds": rounds, "peak_mb": peak_rss_mb(),
        "up_mb": tree.bytes_up / 1e6, "regions_up_mb": tree.bytes_regions / 1e6,
        "memory_rows": len(bank), "left_out": tree.refused,
        "regions_left_out": len(tree.root.ledger.rounds[-1].distrusted),
    }  # fmt: skip


def auroc(bank: MemoryBank, images: Iterable[FloatArray], labels: Sequence[int]) -> float:
    """Of images (h, w, d) scored with the memory."""
    scorer = MemoryScorer(bank, ScoringConfig())
    return image_auroc(np.array([scorer.score(image)[0] for image in images]), labels) or 0.0


def drawn(image: FloatArray, rows: npt.NDArray[np.int64]) -> FloatArray:
    """Some of the patches of an image (h, w, d)."""
    return image.reshape(-1, image.shape[2])[rows]


def farthest(image: FloatArray, reference: torch.Tensor, count: int = 12) -> FloatArray:
    """The patches of an image (h, w, d) that are farthest from a reference (n, d)."""
    patches = torch.from_numpy(image.reshape(-1, image.shape[2]))
    found = nearest(patches, reference)[0].topk(count).indices
    return patches[found].numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--sites", type=int, default=10_000)
    parser.add_argument("--region", type=int, default=100)
    parser.add_argument("--seeds", default="0,1,2")
    arguments = parser.parse_args()
    config = resolve_config(backbone=arguments.backbone, weights=arguments.weights, image_size=256)
    cache = DescriptorCache(arguments.cache) if arguments.cache else None
    extractor = FeatureExtractor(config.features(), cache)
    found = load_sites(arguments.data, None, 0)
    train = [i.path for site in found for i in site.train if i.label == 0]
    tested = [(i.path, i.label) for site in found for i in site.test]
    bad = [path for path, label in tested if label][::2]
    scored = [(path, label) for path, label in tested if path not in bad]

    def described(paths: list[Path]) -> Iterator[FloatArray]:
        found = (x.descriptors for x in extractor.stream(paths))
        return (to_float(x) for x in found if x is not None)

    rng = np.random.default_rng(0)
    normal = [drawn(x, rng.permutation(PATCHES)[:OF_IMAGE]) for x in described(train)]
    reference = torch.from_numpy(np.concatenate([rows[:2] for rows in normal]))
    defects = [farthest(x, reference) for x in described(bad)]
    for seed in map(int, arguments.seeds.split(",")):
        for lying, robust in CASES:
            bank, reported = simulate(
                normal, defects, sites=arguments.sites, region=arguments.region, lying=lying,
                robust=robust, seed=seed,
            )  # fmt: skip
            images = described([path for path, _ in scored])
            reported["auroc"] = auroc(bank, images, [label for _, label in scored])
            print(
                json.dumps({"seed": seed, "lying": lying, "robust": robust, **reported}), flush=True
            )


if __name__ == "__main__":
    main()
