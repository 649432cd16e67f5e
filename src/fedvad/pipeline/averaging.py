"""Trainers of several sites, averaged over rounds: students, generators and adaptors alike."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.defence.robust import RobustConfig
from fedvad.federation.exchange.terms import WeightConfig
from fedvad.federation.exchange.weights import WeightExchange, WeightSite
from fedvad.federation.ledger import Ledger
from fedvad.federation.payload import Payload
from fedvad.federation.runners.inprocess import Schedule, run_rounds
from fedvad.pipeline.progress import Stage

__all__ = ["average_rounds"]


def average_rounds(
    trainers: Mapping[str, Any],
    initial: Mapping[str, Any],
    terms: WeightConfig,
    schedule: Schedule,
    extractor: FeatureExtractor,
    *,
    images: Mapping[str, int],
    seeds: Mapping[str, int],
    ledger: Ledger,
    defence: RobustConfig | None = None,
    state_dir: Path | None = None,
    resume: bool = False,
    stage: Stage | None = None,
) -> Payload:
    """The weights after all rounds, under `weight/`.

    trainers: by site, see `Trainable`. initial: the common start, by parameter name. images, seeds:
    by site. defence: see `WeightExchange`. Raises as `run_rounds` does.
    """
    height, width, _ = extractor.grid
    sites = {
        name: WeightSite(
            name,
            trainer,
            n_images=images[name],
            n_patches=images[name] * height * width,
            seed=seeds[name],
        )
        for name, trainer in trainers.items()
    }
    exchange = WeightExchange(
        features=extractor.config.key(), initial=initial, config=terms, sites=len(sites),
        defence=defence,
    )  # fmt: skip
    return run_rounds(
        exchange,
        sites,
        schedule,
        ledger=ledger,
        state_dir=state_dir,
        resume=resume,
        on_step=None if stage is None else lambda round_, site: stage(),
    )
