"""What the strength of weight-scope alignment does: spread of the scopes, loss, and AUROC.

    python benchmarks/wsa.py --data SITES [--strengths 0,0.01,0.1,1,10] [--method stfpm]
        [--rounds 5] [--steps 20] [--size 224] [--seeds 0] [--backbone NAME --weights F]
        [--cache FOLDER]

Sites average a student. The spread is that of the sites'
deviations sigma of a layer in the last round, before averaging, relative to their mean, in the mean
over the layers: what the alignment is to lower. The loss is the sites' mean of their last round. A
diverged training has a dash. Scores are those of the test images; nothing is chosen by them.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from statistics import fmean

import numpy as np
from common import spread

from fedvad.detectors.student.parameters import parameters_of
from fedvad.errors import FedvadError
from fedvad.evaluation.metrics import image_auroc
from fedvad.features.cache import DescriptorCache
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.exchange.scope import Scope, WSAConfig, scope_of
from fedvad.federation.exchange.weights import WeightExchange, WeightSite
from fedvad.federation.ledger import Ledger
from fedvad.federation.payload import Payload
from fedvad.runs.config import resolve_config
from fedvad.runs.data import load_sites, warm_up
from fedvad.runs.method import make_method
from fedvad.runs.progress import no_progress


class Watched:
    """The scope and the loss of each site after its last round so far."""

    def __init__(self) -> None:
        self.scopes: dict[str, Scope] = {}
        self.losses: dict[str, float] = {}
        self._step = WeightExchange.site_step

    def __call__(
        self, exchange: WeightExchange, site: WeightSite, incoming: Payload | None, round_: int
    ) -> Payload:
        sent = self._step(exchange, site, incoming, round_)
        self.scopes[site.name] = scope_of(parameters_of(site.trainer.student), WSAConfig())
        self.losses[site.name] = site.trainer.log.loss[-1]
        return sent

    def spread(self) -> float:
        """Mean over the layers of the sites' standard deviation of sigma, relative to its mean."""
        layers = defaultdict(list)
        for scope in self.scopes.values():
            for name, (_, deviation, _) in scope.items():
                layers[name].append(deviation)
        return fmean(float(np.std(found) / np.mean(found)) for found in layers.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--strengths", default="0,0.01,0.1,1,10")
    parser.add_argument("--method", default="stfpm")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--backbone", default="fedvad-tiny")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--cache", type=Path, help="folder that keeps descriptors")
    given = parser.parse_args()
    plain = {"backbone": given.backbone, "weights": given.weights, "image_size": given.size}
    config = resolve_config(method=given.method, rounds=given.rounds, **plain)
    sites = load_sites(given.data, config.split, config.seed)
    cache = None if given.cache is None else DescriptorCache(given.cache)
    extractor = FeatureExtractor(config.features(), cache)
    features = warm_up(sites, extractor, config.max_bad, no_progress)
    print(
        "| strength | spread of sigma | loss | image AUROC, mean of sites |\n" + "| --- " * 4 + "|"
    )
    for strength in map(float, given.strengths.split(",")):
        rows = []
        for seed in map(int, given.seeds.split(",")):
            student = {"wsa": strength, "steps": given.steps}
            seeded = resolve_config(
                method=given.method, rounds=given.rounds, seed=seed, student=student, **plain
            )
            watched = Watched()
            original = WeightExchange.site_step
            WeightExchange.site_step = lambda *call, w=watched: w(*call)  # type: ignore[method-assign]
            try:
                with closing(make_method(seeded, extractor)) as method:
                    method.take(features)
                    run = method.train(Ledger())
            except FedvadError as error:
                print(f"| {strength:g} | – | – | – ({str(error)[:60]}) |", flush=True)
                continue
            finally:
                WeightExchange.site_step = original  # type: ignore[method-assign]
            aurocs = []
            for site in sites:
                scores = run.detector(site.name, extractor).score(site.test.paths)
                labels = site.test.subset(scores.kept.tolist()).labels
                aurocs.append(image_auroc(scores.image, labels))
            known = [value for value in aurocs if value is not None]
            rows.append((watched.spread(), fmean(watched.losses.values()), fmean(known)))
        if rows:
            columns = " | ".join(spread(column, 5) for column in zip(*rows, strict=True))
            print(f"| {strength:g} | {columns} |", flush=True)


if __name__ == "__main__":
    main()
