"""A new product appears at one site: do the others accept it without its images, and forget theirs?

    python benchmarks/new_product.py DATA/mtd DATA/hazelnut --weights W [--seeds 0,1,2] [--sites 3]

Two rounds on the product that all sites make. Then the first site has images of another as well,
and one more round is made. Shown is image AUROC of the global detector, before and after, on the
old product (mean and lowest site) and on the new one, judged at a site that has none of its
images; and what the first site sent in that round. Memories: FedDyMem as `fedvad train` runs it;
only the first site takes part in the last round, the server has what the others sent before.
Students: PaSTe with one layer shared, FedAvg, `--steps` per site and round; all sites take part in
the last round, since a mean of one is that one's. Every site uses its own batch statistics.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedvad.data.folders import Site, read_set, read_sites
from fedvad.detectors.base import Detector
from fedvad.detectors.memory.feddymem import FedDyMem
from fedvad.detectors.memory.site import MemorySite
from fedvad.detectors.registry import create
from fedvad.detectors.student.detector import StudentDetector
from fedvad.detectors.student.parameters import load_parameters, parameters_of, under
from fedvad.detectors.student.training import TrainConfig as Training
from fedvad.evaluation.metrics import image_auroc
from fedvad.features.cache import DescriptorCache, default_cache_root
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.exchange.terms import WeightConfig
from fedvad.federation.exchange.weights import WeightExchange, WeightSite
from fedvad.federation.ledger import Ledger
from fedvad.federation.mailboxes.inprocess import Schedule, run_rounds
from fedvad.federation.payload import bank_from
from fedvad.runs.config import TrainConfig, resolve_config
from fedvad.runs.data import warm_up
from fedvad.runs.plan import memory_sites, plan, site_seed
from fedvad.runs.progress import no_progress

ROUNDS = 2


@dataclass(frozen=True)
class Outcome:
    """AUROC of the old product at each site and of the new one, and bytes of the last round."""

    old: list[float]
    new: float
    sent: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--sites", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--memories-only", action="store_true")
    arguments = parser.parse_args()
    sites, new = read_sites(arguments.old)[: arguments.sites], read_set(arguments.new, "new")
    found: dict[str, list[tuple[Outcome, Outcome]]] = {}
    for seed in map(int, arguments.seeds.split(",")):
        config = resolve_config(
            backbone=arguments.backbone,
            weights=arguments.weights,
            image_size=arguments.image_size,
            rounds=ROUNDS,
            seed=seed,
            calibration="none",
        )
        extractor = FeatureExtractor(config.features(), DescriptorCache(default_cache_root()))
        found.setdefault("memories", []).append(memories(sites, new, config, extractor))
        if not arguments.memories_only:
            done = students(sites, new, config, extractor, arguments.steps)
            found.setdefault("students, FedAvg", []).append(done)
    print(table(found))


def memories(
    sites: Sequence[Site], new: Site, config: TrainConfig, extractor: FeatureExtractor
) -> tuple[Outcome, Outcome]:
    exchange, schedule = plan(config, extractor)
    features = warm_up(sites, extractor, config.max_bad, no_progress)
    members = memory_sites(config, features, extractor.grid[2])
    ledger = Ledger()
    merged = run_rounds(exchange, members, schedule, ledger=ledger)

    def outcome() -> Outcome:
        detector = FedDyMem(extractor=extractor, scoring=config.scoring())
        made = detector.with_memory(bank_from(merged))
        sent = ledger.rounds[-1].bytes_up[sites[0].name]
        return Outcome([auroc(made, s) for s in sites], auroc(made, new), sent)

    before = outcome()
    first = with_new(sites[0], new)
    grown = MemorySite(
        warm_up([first], extractor, config.max_bad, no_progress)[first.name],
        config.memory(extractor.grid[2]),
        seed=site_seed(config.seed, 0),
    )
    grown.restore(members[first.name].snapshot())
    last = Schedule(rounds=ROUNDS + 1, seed=config.seed)
    merged = run_rounds(exchange, {first.name: grown}, last, ledger=ledger, after=(ROUNDS, merged))
    return before, outcome()


def students(
    sites: Sequence[Site], new: Site, config: TrainConfig, extractor: FeatureExtractor, steps: int
) -> tuple[Outcome, Outcome]:
    train = Training(steps=steps, warmup=5, patience=None)
    scoring = config.scoring()

    def fresh() -> StudentDetector:
        made = create(
            "paste", extractor=extractor, layers=config.layers, bootstrap=1, train=train,
            smooth=scoring.smooth, top=scoring.top, seed=config.seed,
        )  # fmt: skip
        assert isinstance(made, StudentDetector)
        return made

    trainers = {site.name: fresh().prepare(site.train) for site in sites}
    members = {
        name: WeightSite(name, t, len(t), len(t), seed=site_seed(config.seed, i))
        for i, (name, t) in enumerate(trainers.items())
    }
    initial = parameters_of(next(iter(trainers.values())).student)
    exchange = WeightExchange(
        features=extractor.config.key(), initial=initial, config=WeightConfig(), sites=len(sites)
    )
    ledger = Ledger()
    schedule = Schedule(rounds=ROUNDS, seed=config.seed)
    merged = run_rounds(exchange, members, schedule, ledger=ledger)

    def outcome() -> Outcome:
        made: dict[str, Detector] = {}
        for name, trainer in trainers.items():
            load_parameters(trainer.student, under("weight/", merged.arrays))
            trainer.recalibrate_batch_norm()
            made[name] = fresh().with_net(trainer.net, trainer.unseen)
        other = list(made.values())[-1]  # a site that has never seen the new product
        sent = ledger.rounds[-1].bytes_up[sites[0].name]
        return Outcome([auroc(made[s.name], s) for s in sites], auroc(other, new), sent)

    before = outcome()
    first = with_new(sites[0], new)
    trainers[first.name].close()
    trainers[first.name] = fresh().prepare(first.train)
    trainer, seed = trainers[first.name], members[first.name].seed
    grown = WeightSite(first.name, trainer, len(trainer), len(trainer), seed)
    last = Schedule(rounds=ROUNDS + 1, seed=config.seed)
    merged = run_rounds(
        exchange, members | {first.name: grown}, last, ledger=ledger, after=(ROUNDS, merged)
    )
    after = outcome()
    for trainer in trainers.values():
        trainer.close()
    return before, after


def with_new(site: Site, new: Site) -> Site:
    return Site(site.name, site.train + new.train, site.test)


def auroc(detector: Detector, site: Site) -> float:
    scores = detector.score(site.test.paths)
    found = image_auroc(scores.image, site.test.subset(scores.kept.tolist()).labels)
    assert found is not None
    return found


def table(found: Mapping[str, Sequence[tuple[Outcome, Outcome]]]) -> str:
    head = "| method | old product before | after | lowest site before | after | new before | after"
    lines = [f"{head} | sent in that round |", "| --- |" + " ---: |" * 7]
    for name, pairs in found.items():
        columns = [
            [[np.mean(o.old) for o in pair] for pair in pairs],
            [[min(o.old) for o in pair] for pair in pairs],
            [[o.new for o in pair] for pair in pairs],
        ]
        cells = []
        for column in columns:
            values = np.array(column)
            spread = values.std(0, ddof=min(1, len(values) - 1))
            cells += [f"{m:.3f} ± {s:.3f}" for m, s in zip(values.mean(0), spread, strict=True)]
        sent = max(after.sent for _, after in pairs)
        lines.append(f"| {name} | {' | '.join(cells)} | {sent / 1e6:.2f} MB |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
