"""False alarms of sites whose normal images are few pictures saved several times.

Each site of a set has 15 pictures, saved four times as JPEG of different quality, one of them
moved by a pixel. Thresholds are found as before near copies were recognised ("each counts") and as
now, and applied to all other normal images of the site.

    python benchmarks/near_copies.py --data DATA --out OUT
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean

import numpy as np
from PIL import Image, ImageChops
from threshold_scores import SETS, _features, pools

from fedvad.detectors.calibration import held_out_scores
from fedvad.detectors.memory.generator import Generator
from fedvad.detectors.scoring import MemoryScorer
from fedvad.evaluation.federated import federated_thresholds
from fedvad.evaluation.thresholds import conformal_threshold, promise
from fedvad.features.cache import DescriptorCache, default_cache_root
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.ledger import Ledger
from fedvad.federation.mailboxes.inprocess import run_rounds
from fedvad.federation.payload import bank_from
from fedvad.runs.config import TrainConfig, resolve_config
from fedvad.runs.plan import memory_sites, plan

PICTURES, FRESH = 15, 60


def saved_again(picture: Path, folder: Path, name: str) -> list[Path]:
    """Four files of one picture."""
    folder.mkdir(parents=True, exist_ok=True)
    with Image.open(picture) as opened:
        image = opened.convert("RGB")
    made = []
    for kind, quality in (("a", 95), ("b", 75), ("c", 85), ("moved", 90)):
        again = ImageChops.offset(image, 1, 0) if kind == "moved" else image
        made.append(folder / f"{name}-{kind}.jpg")
        again.save(made[-1], quality=quality)
    return made


def grouped(paths: list[Path], extractor: FeatureExtractor) -> int:
    """How many of a site's own images are taken for near copies."""
    own = _features(paths, extractor)
    own.warm_up()
    return len(own) - len(own.witnesses())


def cell(
    collection: str, data: Path, out: Path, config: TrainConfig, extractor: FeatureExtractor
) -> list[dict]:
    """One row by site, way of counting and wanted rate."""
    (kind,) = (known for known in SETS if known.name == collection)
    train, fresh, bad = {}, {}, {}
    for k, (name, pool) in enumerate(pools(kind, data, out).items()):
        rng = np.random.default_rng((config.seed, k))
        order = [pool.normal[i] for i in rng.permutation(len(pool.normal))]
        folder = out / collection / f"{config.seed}" / name
        train[name] = [
            path for i, p in enumerate(order[:PICTURES]) for path in saved_again(p, folder, f"{i}")
        ]
        fresh[name], bad[name] = order[PICTURES:][:FRESH], pool.anomalous[:40]
    features = {name: _features(paths, extractor, name) for name, paths in train.items()}
    for own in features.values():
        own.warm_up()
    exchange, schedule = plan(config, extractor)
    members = memory_sites(config, features, extractor.grid[2])
    bank = bank_from(run_rounds(exchange, members, schedule, ledger=Ledger()))
    scorer, identity = MemoryScorer(bank, config.scoring()), Generator.identity(bank.dim)

    def scores(images, leave_one_out: bool = False) -> np.ndarray:
        return np.array(held_out_scores(images, scorer, identity, leave_one_out=leave_one_out))

    now = {n: scores(own.subset(own.witnesses()), True) for n, own in features.items()}
    for own in features.values():
        own.copies = {}
    before = {name: scores(own, True) for name, own in features.items()}
    tested = {
        name: (scores(_features(fresh[name], extractor)), scores(_features(bad[name], extractor)))
        for name in train
    }
    rows = []
    for way, found in (("each counts", before), ("near copies once", now)):
        for target in (0.01, 0.05):
            for rule, limits in (
                ("federated", federated_thresholds(found, target)),
                ("own", {n: conformal_threshold(s, target) for n, s in found.items()}),
            ):
                for name in train:
                    normal, defective = tested[name]
                    value, count = limits[name].value, len(found[name])
                    rows.append({
                        "set": collection, "way": way, "wanted": target, "rule": rule,
                        "counted": count, "promised": promise(count).rate,
                        "rate": float(np.mean(normal > value)),
                        "recall": float(np.mean(defective > value)),
                    })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the sets")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", default="mtd,screw,hazelnut,brain_mri")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--seeds", default="0,1,2")
    arguments = parser.parse_args()
    names = arguments.sets.split(",")
    rows = []
    for seed in map(int, arguments.seeds.split(",")):
        config = resolve_config(image_size=arguments.image_size, upload_rows=500, seed=seed)
        extractor = FeatureExtractor(config.features(), DescriptorCache(default_cache_root()))
        for name in names:
            rows += cell(name, arguments.data, arguments.out, config, extractor)
    print("| set | wanted | rule | near copies | counted | promised | false alarms | recall |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for key in dict.fromkeys((r["set"], r["wanted"], r["rule"], r["way"]) for r in rows):
        own = [r for r in rows if (r["set"], r["wanted"], r["rule"], r["way"]) == key]
        means = [fmean(r[k] for r in own) for k in ("counted", "promised", "rate", "recall")]
        print(f"| {key[0]} | {key[1]:.0%} | {key[2]} | {key[3]} | {means[0]:.0f} | "
              f"{means[1]:.1%} | {means[2]:.1%} | {means[3]:.0%} |")  # fmt: skip
    print("\nOf the sets' own images, taken for near copies:\n")
    for name in names:
        (kind,) = (known for known in SETS if known.name == name)
        for site, pool in pools(kind, arguments.data, arguments.out).items():
            print(f"{name}/{site}: {grouped(pool.normal, extractor)} of {len(pool.normal)}")


if __name__ == "__main__":
    main()
