"""Malicious sites among real ones: clean, attacked and defended, on the honest sites' test images.

    python benchmarks/robustness.py DATA --weights F [--cache DIR] [--pairs "a,b;c,d"] [--out JSON]

Every site's uploads are formed once, by `fedvad train`'s own code without any attack; then two
sites' uploads are replaced by hostile ones (`attacks.py`), merged by the exchange
with and without its defence, and each honest site's images scored by exact search. `--every 2`
takes every second test image. Prints a Markdown table: means over the choices of malicious sites,
and the worst. The defect features taught are those of real test defects: labels and masks serve
the attacker and the measurement, never the defence.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import spread
from PIL import Image

from attacks import random_noise, scaled, sybils, taught_defect
from fedvad.data.folders import Site
from fedvad.detectors.scoring import image_score, smooth
from fedvad.evaluation.metrics import image_auroc
from fedvad.features.cache import DescriptorCache
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.defence.robust import RobustConfig
from fedvad.federation.exchange.memory import MemoryExchange
from fedvad.federation.payload import Payload, bank_from
from fedvad.half import to_float
from fedvad.memory.coreset import k_center
from fedvad.memory.distances import nearest
from fedvad.runs.config import TrainConfig, resolve_config
from fedvad.runs.data import load_sites, warm_up
from fedvad.runs.plan import memory_sites, plan, sampling_ahead
from fedvad.runs.progress import no_progress

Uploads = dict[str, list[Payload]]
SHARES = (0.05, 0.25, 1.0)
FPR = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--split")
    parser.add_argument("--pairs", help="malicious sites; by default three pairs by name")
    parser.add_argument("--every", type=int, default=2, help="take every n-th test image")
    parser.add_argument("--nearest", type=float, default=RobustConfig.nearest)
    parser.add_argument("--only", help="attacks, separated by semicolons")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    config = resolve_config(
        backbone=arguments.backbone, weights=arguments.weights, split=arguments.split
    )
    sites = load_sites(arguments.data, config.split, config.seed)
    cache = DescriptorCache(arguments.cache) if arguments.cache else None
    extractor = FeatureExtractor(config.features(), cache)
    uploads = form_uploads(sites, config, extractor)
    names = sorted(uploads)
    if arguments.pairs:
        pairs = [tuple(pair.split(",")) for pair in arguments.pairs.split(";")]
    else:
        half = len(names) // 2
        pairs = [(names[i], names[(i + half) % len(names)]) for i in range(min(3, half))]
    tested = {site.name: _Site(site, uploads, extractor, arguments.every) for site in sites}
    results = []
    for pair in pairs:
        results.append(
            measure(pair, sites, uploads, config, extractor, tested, arguments)
            | {"malicious": list(pair)}
        )
        print(json.dumps(results[-1]), flush=True)
        if arguments.out:
            arguments.out.write_text(json.dumps(results, indent=1))
    print(table(results))


def form_uploads(sites: list[Site], config: TrainConfig, extractor: FeatureExtractor) -> Uploads:
    """What each site sends in each round of an ordinary run."""
    exchange, schedule = plan(config, extractor)
    members: dict[str, Any] = {}

    def watch(unread: Mapping[str, Any]) -> Mapping[str, Any]:
        members.update(memory_sites(config, unread, extractor.grid[2]))
        return sampling_ahead(config, members)

    features = warm_up(sites, extractor, config.max_bad, no_progress, watch)
    uploads: Uploads = {name: [] for name in sorted(members)}
    incoming = None
    for round_ in range(1, schedule.rounds + 1):
        for name in uploads:
            members[name].features = features[name]
            sent = exchange.site_step(members[name], incoming, round_)
            exchange.accept(sent)
            uploads[name].append(sent)
        incoming = exchange.merge(round_)
    return uploads


def measure(
    pair: tuple[str, ...],
    sites: list[Site],
    uploads: Uploads,
    config: TrainConfig,
    extractor: FeatureExtractor,
    tested: Mapping[str, _Site],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Every attack by these malicious sites: rows by scenario, then AUROC and recall."""
    memories: dict[str, np.ndarray] = {}
    reported: dict[str, dict[str, str]] = {}
    trust: dict[str, dict[str, float]] = {}

    def merge(name: str, sent: Uploads) -> None:
        for defended in (False, True):
            exchange, _ = plan(config, extractor)
            if defended:
                exchange.defence = RobustConfig(nearest=arguments.nearest)
            merged = bank_from(_merged(exchange, sent))
            key = f"{name}|{'defended' if defended else 'attacked'}"
            memories[key] = merged.vectors
            if exchange.verdict:
                reported[name] = exchange.verdict.reasons
                trust[name] = exchange.verdict.trust

    merge("none", uploads)
    merge("none, malicious sites away", {k: v for k, v in uploads.items() if k not in pair})
    only = arguments.only.split(";") if arguments.only else None
    for name, sent in attacks(pair, sites, uploads, extractor).items():
        if only is None or any(name.startswith(wanted) for wanted in only):
            merge(name, uploads | sent)
    scores: dict[str, dict[str, Any]] = {}
    for name in sorted(set(tested) - set(pair)):
        at_home = {
            key: np.concatenate([rows, tested[name].rows[name]]) if "defended" in key else rows
            for key, rows in memories.items()
        }
        for key, values in tested[name].scores(at_home).items():
            scores.setdefault(key, {})[name] = _figures(values, tested[name].labels)
    return {"scores": scores, "reported": reported, "trust": trust}


def attacks(
    pair: tuple[str, ...], sites: list[Site], uploads: Uploads, extractor: FeatureExtractor
) -> dict[str, Uploads]:
    """Hostile uploads by attack; defects in the order in which they do most harm per row."""
    honest = [site for site in sites if site.name not in pair]
    known = np.concatenate([bank_from(p).vectors for s in honest for p in uploads[s.name]])
    wanted = sum(len(bank_from(p)) for name in pair for p in uploads[name])
    sources = {
        "victims' test defects": _defects(honest, extractor),
        "own test defects": _defects([s for s in sites if s.name in pair], extractor),
    }
    hostile: dict[str, Uploads] = {}
    for source, patches in sources.items():
        # what the honest memory knows least first: the attacker sees the global memory
        order = k_center(patches, wanted, seed=0, initial=known, projection=64).indices
        rows = patches[order]
        for share in SHARES:
            taught = _teach(pair, uploads, rows, share, apart=True)
            hostile[f"{source}, {share:.0%} of rows"] = taught
    rows = sources["victims' test defects"]
    rows = rows[k_center(rows, wanted, seed=0, initial=known, projection=64).indices]
    taught = _teach(pair[:1], uploads, rows, 0.25, apart=True)[pair[0]]
    hostile["sybils: one upload twice, 25% of rows"] = {
        name: [sybils(p, pair, jitter=0.05, seed=0)[i] for p in taught]
        for i, name in enumerate(pair)
    }
    hostile["random noise"] = {n: [random_noise(p, seed=1) for p in uploads[n]] for n in pair}
    hostile["rows times 3"] = {n: [scaled(p, 3.0) for p in uploads[n]] for n in pair}
    return hostile


def _teach(
    pair: tuple[str, ...], uploads: Uploads, rows: np.ndarray, share: float, *, apart: bool
) -> Uploads:
    taught: Uploads = {name: [] for name in pair}
    position = 0
    for round_ in range(len(uploads[pair[0]])):
        for name in pair:
            upload = uploads[name][round_]
            count = round(share * len(upload.arrays["vectors"]))
            part = rows[position : position + count]
            taught[name].append(taught_defect(upload, part, share=share, seed=round_))
            position += count if apart else 0
    return taught


def _merged(exchange: MemoryExchange, sent: Uploads) -> Payload:
    for payloads in sent.values():
        for payload in payloads:
            exchange.accept(payload)
    return exchange.merge(1)


def _defects(sites: list[Site], extractor: FeatureExtractor) -> np.ndarray:
    """Descriptors (n, d) of cells that lie by more than half in a defect's mask."""
    height, width, _ = extractor.grid
    found = []
    for site in sites:
        items = [item for item in site.test if item.label and item.mask is not None]
        for item, read in zip(items, extractor.stream([i.path for i in items]), strict=True):
            mask = Image.open(item.mask).convert("L").resize((width, height), Image.Resampling.BOX)
            inside = np.asarray(mask) > 127
            if read.descriptors is not None:
                found.append(to_float(read.descriptors)[inside])
    return np.concatenate(found)


class _Site:
    """One honest site's test images, each patch's nearest row among each site's honest rows."""

    def __init__(
        self, site: Site, uploads: Uploads, extractor: FeatureExtractor, every: int
    ) -> None:
        items = list(site.test)[::every]
        self.labels = np.array([item.label for item in items])
        read = list(extractor.stream([item.path for item in items]))
        images = [item.descriptors for item in read if item.descriptors is not None]
        self.shape = images[0].shape[:2]
        self.patches = torch.from_numpy(to_float(np.stack(images)).reshape(-1, images[0].shape[2]))
        self.name = site.name
        self.rows = {name: _rows(sent) for name, sent in uploads.items()}
        self.nearest = {
            name: tuple(part.numpy() for part in nearest(self.patches, torch.from_numpy(rows)))
            for name, rows in self.rows.items()
        }

    def scores(self, memories: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Image scores by memory. Rows that honest sites sent are looked up, others measured."""
        squared, hostile = {}, {}
        for name, memory in memories.items():
            keys = set(_keys(memory))
            best = np.full(len(self.patches), np.inf, np.float32)
            for sender, rows in self.rows.items():
                held = np.array([key in keys for key in _keys(rows)])
                keys.difference_update(np.array(_keys(rows), dtype=object)[held])
                np.minimum(best, self._held(sender, rows, held, best), out=best)
            squared[name] = best
            hostile[name] = keys
        groups: dict[tuple[str, ...], list[bytes]] = {}
        for key in sorted(set().union(*hostile.values())):
            groups.setdefault(tuple(n for n in hostile if key in hostile[n]), []).append(key)
        for names, group in groups.items():
            rows = np.frombuffer(b"".join(group), np.float16).reshape(len(group), -1)
            found = nearest(self.patches, torch.from_numpy(rows.astype(np.float32)))[0].numpy()
            for name in names:
                np.minimum(squared[name], found, out=squared[name])
        return {name: self._image_scores(values) for name, values in squared.items()}

    def _held(
        self, sender: str, rows: np.ndarray, held: np.ndarray, best: np.ndarray
    ) -> np.ndarray:
        """Squared distances to the rows still held; measured anew where the nearest is not."""
        found, index = self.nearest[sender]
        if held.all():
            return found
        found = np.where(held[index], found, np.inf).astype(np.float32)
        again = np.flatnonzero(~held[index] & (self.nearest[sender][0] < best))
        if len(again) and held.any():
            found[again] = nearest(self.patches[again], torch.from_numpy(rows[held]))[0].numpy()
        return found

    def _image_scores(self, squared: np.ndarray) -> np.ndarray:
        maps = np.sqrt(squared).astype(np.float32).reshape(-1, *self.shape)
        return np.array([image_score(smooth(map_, 3), 0.03) for map_ in maps])


def _rows(sent: list[Payload]) -> np.ndarray:
    return np.concatenate([bank_from(payload).vectors for payload in sent])


def _keys(rows: np.ndarray) -> list[bytes]:
    return [row.tobytes() for row in np.ascontiguousarray(rows, dtype=np.float16)]


def _figures(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """AUROC, and recall where one normal test image in twenty is a false alarm."""
    limit = np.quantile(scores[labels == 0], 1 - FPR, method="higher")
    return {
        "auroc": float(image_auroc(scores, labels) or 0.0),
        "recall": float((scores[labels == 1] > limit).mean()),
    }


def table(results: list[dict[str, Any]]) -> str:
    """One row per attack: image AUROC over honest sites, recall, worst choice of liars."""
    lines = [
        "| attack by two sites | AUROC attacked | defended | recall attacked | defended "
        "| largest fall attacked | defended |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]

    def mean(result: dict[str, Any], key: str, figure: str) -> float:
        return float(np.mean([v[figure] for v in result["scores"][key].values()]))

    attacks = [key.split("|")[0] for key in results[0]["scores"] if key.endswith("|attacked")]
    for attack in attacks:
        cells = [attack]
        for figure in ("auroc", "recall"):
            for how in ("attacked", "defended"):
                values = [mean(r, f"{attack}|{how}", figure) for r in results]
                cells.append(spread(values))
        for how in ("attacked", "defended"):
            falls = [
                mean(r, "none|attacked", "auroc") - mean(r, f"{attack}|{how}", "auroc")
                for r in results
            ]
            cells.append(f"{max(falls):.4f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
