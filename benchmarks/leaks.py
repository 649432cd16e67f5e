"""What uploads give away, against what they are good for: raw rows, averages, noised averages.

    python benchmarks/leaks.py DATA --weights F [--cache DIR] [--seeds 0,1,2] [--only "a;b"]
                               [--every 2] [--out JSON]

Half of each site's normal training images, drawn by the seed, take part; the other half are the
outsiders of the attacks. The attacker is the server: it sees each site's rows and those of the
others. AUROC is of every second test image (`--every`), scored with the global memory, and with
global and the site's own raw rows together, which never left it (`union`). The clipping bound
comes from drawn images, so from no site. Prints a Markdown table of means over sites and seeds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from fedvad.data.folders import Site
from fedvad.detectors.base import NormalFeatures, score_stream
from fedvad.detectors.scoring import MemoryScorer
from fedvad.drawing.demo import write_demo
from fedvad.evaluation.metrics import image_auroc
from fedvad.features.cache import DescriptorCache
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.ledger import Ledger
from fedvad.federation.mailboxes.inprocess import run_rounds
from fedvad.federation.payload import bank_from
from fedvad.half import to_float
from fedvad.memory.bank import MemoryBank, concatenate
from fedvad.runs.config import TrainConfig, resolve_config
from fedvad.runs.data import load_sites
from fedvad.runs.plan import memory_sites, plan, privacy
from fedvad.verbs.audit import audit_rows

_POSITION: dict[str, Any] = {
    "method": "feddymem-position", "merge": "average", "rounds": 1, "upload_bytes": 2_000_000
}  # fmt: skip
Home = dict[str, tuple[MemoryBank, float]]
SETTINGS: dict[str, dict[str, Any]] = {
    "patches (default)": {},
    "patches, 200 a round": {"upload_rows": 200},
    "averages of cells, 3 images": {"pull": 1.0, "min_count": 3},
    "averages of clusters, 3 images": {"method": "feddymem-cluster", "min_count": 3},
    "averages of clusters, 10 images, 100 rows": {
        "method": "feddymem-cluster", "min_count": 10, "upload_rows": 100
    },
    "averages of clusters, 10 images, 15 rows": {
        "method": "feddymem-cluster", "min_count": 10, "upload_rows": 15
    },
    "averages of positions": _POSITION,
    **{
        f"averages of positions, noise {noise:g}": {**_POSITION, "noise": noise}
        for noise in (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
    },
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", help="settings, separated by semicolons")
    parser.add_argument("--every", type=int, default=2)
    parser.add_argument("--images", type=int, default=40, help="of each kind, per site and attack")
    parser.add_argument("--out", type=Path, help="keeps finished cells")
    arguments = parser.parse_args()
    cells: dict[str, Any] = {}
    if arguments.out and arguments.out.is_file():
        cells = json.loads(arguments.out.read_text())
    base = {"backbone": arguments.backbone, "weights": arguments.weights}
    extractor = FeatureExtractor(
        resolve_config(**base).features(),
        DescriptorCache(arguments.cache) if arguments.cache else None,
    )
    sites = load_sites(arguments.data, None, 0)
    clip = None
    only = arguments.only.split(";") if arguments.only else list(SETTINGS)
    for seed in map(int, arguments.seeds.split(",")):
        home: Home = {}
        for name in only:
            if f"{name}|{seed}" in cells:
                continue
            options = dict(SETTINGS[name])
            if "noise" in options:
                clip = clip or public_clip(extractor)
                options["clip"] = clip
            config = resolve_config(**base, **options, seed=seed, calibration="none")
            cells[f"{name}|{seed}"] = measure(sites, config, extractor, arguments, home)
            print(name, seed, json.dumps(cells[f"{name}|{seed}"]), flush=True)
            if arguments.out:
                arguments.out.write_text(json.dumps(cells))
    print(table(cells, only))


def public_clip(extractor: FeatureExtractor) -> float:
    """Root-mean-square patch length of drawn images: a bound that looked at no site's data."""
    with tempfile.TemporaryDirectory() as folder:
        write_demo(Path(folder), train=8, test_normal=1, test_defect=1, seed=0)
        paths = sorted(Path(folder).rglob("train/good/*.png"))
        plain = FeatureExtractor(extractor.config)
        lengths = [
            float(np.sqrt((to_float(item.descriptors) ** 2).sum(2).mean()))
            for item in plain.stream(paths)
            if item.descriptors is not None
        ]
    return float(np.median(lengths))


def measure(
    sites: Sequence[Site],
    config: TrainConfig,
    extractor: FeatureExtractor,
    arguments: Any,
    home: Home,
) -> dict[str, Any]:
    """One federation of half of the images; what it is good for, and what its uploads tell.

    home: each site's own raw rows and its AUROC with them, the same for all settings of a seed.
    """
    members, outsiders, every = {}, {}, arguments.every
    for i, site in enumerate(sites):
        paths = [item.path for item in site.train if item.label == 0]
        order = np.random.default_rng([config.seed, i]).permutation(len(paths))
        half = len(paths) // 2
        members[site.name] = features([paths[k] for k in order[:half]], extractor, site.name)
        outsiders[site.name] = features([paths[k] for k in order[half:]], extractor, site.name)
    uploads, merged = federate(config, members, extractor)
    if not home:
        own = federate(replaced(config), members, extractor)[0]
        for site in sites:
            home[site.name] = own[site.name], auroc(site, own[site.name], config, extractor, every)
    reported: dict[str, list[float]] = {}
    for site in sites:
        mine, alone = home[site.name]
        both = concatenate([merged, mine])
        for key, value in (
            ("global", auroc(site, merged, config, extractor, every)),
            ("union", auroc(site, both, config, extractor, every)),
            ("alone", alone),
        ):
            reported.setdefault(key, []).append(value)
        others = concatenate([b for n, b in uploads.items() if n != site.name])
        audited, _ = audit_rows(
            uploads[site.name].vectors,
            first(members[site.name], arguments.images),
            first(outsiders[site.name], arguments.images),
            others=others.vectors,
            seed=config.seed,
        )
        for key, value in (
            ("membership", audited["membership"]["auc"]),
            ("found", audited["retrieval"]["found"]),
            ("copies", audited["retrieval"]["copies"]),
            ("explained", audited["inversion"]["explained"]),
            ("ceiling", audited["inversion"]["ceiling"]),
        ):
            reported.setdefault(key, []).append(value)
    guarantee = privacy(config) or {}
    return {
        **{key: mean(values) for key, values in reported.items()},
        "worst": min(reported["global"]),
        "rows": len(uploads[sites[0].name]),
        "epsilon": guarantee.get("epsilon"),
        "clip": config.clip,
    }


def auroc(
    site: Site, bank: MemoryBank, config: TrainConfig, extractor: FeatureExtractor, every: int
) -> float:
    """Image AUROC of a part of a site's test images with a memory."""
    tested = site.test[::every]
    scorer = MemoryScorer(bank, config.scoring())
    scores = score_stream(extractor, scorer, lambda d: d, [item.path for item in tested])
    found = image_auroc(scores.image, [item.label for item in tested])
    return float("nan") if found is None else found


def replaced(config: TrainConfig) -> TrainConfig:
    """The default's raw rows, for what a site keeps at home."""
    return resolve_config(
        backbone=config.backbone, weights=config.weights, seed=config.seed, calibration="none"
    )


def federate(
    config: TrainConfig, members: dict[str, NormalFeatures], extractor: FeatureExtractor
) -> tuple[dict[str, MemoryBank], MemoryBank]:
    """All that each site sent, and the global memory."""
    exchange, schedule = plan(config, extractor)
    states = memory_sites(config, members, extractor.grid[2])
    merged = run_rounds(exchange, states, schedule, ledger=Ledger())
    sent = {name: bank_from(payload) for name, payload in exchange.server_state().items()}
    return sent, bank_from(merged)


def features(paths: list[Path], extractor: FeatureExtractor, where: str) -> NormalFeatures:
    made = NormalFeatures(extractor, paths, max_bad=0.05, where=where)
    made.warm_up()
    return made


def first(images: NormalFeatures, count: int) -> NormalFeatures:
    return images.subset(range(min(count, len(images))))


def table(cells: dict[str, Any], names: Sequence[str]) -> str:
    """Means over seeds, as Markdown."""
    columns = {
        "global": "AUROC, global", "worst": "worst site", "union": "AUROC, global and own",
        "alone": "AUROC, own alone", "membership": "membership AUC",
        "copies": "rows that are patches", "found": "nearer to a member",
        "explained": "pixels restored",
    }  # fmt: skip
    lines = ["| sent | rows | epsilon | " + " | ".join(columns.values()) + " |"]
    lines.append("| --- " * (len(columns) + 3) + "|")
    for name in names:
        runs = [cell for key, cell in cells.items() if key.rpartition("|")[0] == name]
        if not runs:
            continue
        eps = runs[0]["epsilon"]
        shown = []
        for key in columns:
            values = [run[key] for run in runs]
            spread = (
                f" ± {stdev(values):.3f}"
                if len(values) > 1 and key in {"global", "membership"}
                else ""
            )
            shown.append(f"{mean(values):.3f}{spread}")
        guarantee = "–" if eps is None else "∞" if np.isinf(eps) else f"{eps:.3g}"
        lines.append(f"| {name} | {runs[0]['rows']} | {guarantee} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
