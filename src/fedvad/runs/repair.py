"""Rows that sites did not send because of others that have left, sent after all."""

from __future__ import annotations

from dataclasses import replace

from fedvad.detectors.memory.site import MemorySite
from fedvad.detectors.scoring import distance_scale
from fedvad.federation.ledger import Ledger
from fedvad.federation.mailboxes.inprocess import run_rounds
from fedvad.federation.payload import bank_from
from fedvad.runs.config import TrainConfig
from fedvad.runs.memory_run import SiteMemory, TrainedRun
from fedvad.runs.method_memory import MemoryMethod, wire_exact
from fedvad.runs.plan import plan, site_seed
from fedvad.runs.renewal import bounded, last_round, merge_again, rows_of_round, upload_of


def leave_out(method: MemoryMethod, site: str, digest: str) -> None:
    """Let an image of a site that was read count no longer."""
    for features in (method.fitting, method.held_out):
        digests = features[site].digests
        features[site] = features[site].subset([i for i, d in enumerate(digests) if d != digest])
    method.members[site].features = method.fitting[site]


def repaired(run: TrainedRun, config: TrainConfig, method: MemoryMethod, left: str) -> TrainedRun:
    """The run with other rows in place of those that were sent because of what left.

    Of the images that trained it, what followed the first round is done again: then it is the
    federation that never had the site, whatever the number of rounds. Of others, or of a run that
    was updated, each site sends once more what the memory covers worst. left: the site that left,
    or an image of it.
    """
    if _as_trained(run, config, method):
        return _trained_on(run, config, method, left)
    return _one_more_round(run, config, method)


def _as_trained(run: TrainedRun, config: TrainConfig, method: MemoryMethod) -> bool:
    """Whether a run is of the images that are given, and its first round is known."""
    counts = {name: len(features) for name, features in method.fitting.items()}
    known = any((1, site) in _sent(run) for site in run.sites)
    return (
        known
        and last_round(run) <= config.rounds
        and counts == {name: site.n_images for name, site in run.sites.items()}
    )


def _sent(run: TrainedRun) -> set[tuple[int, str]]:
    origins = [site.bank.origin for site in run.sites.values() if site.bank.origin is not None]
    return {(source.round, source.site) for origin in origins for source in origin.sources}


def _trained_on(
    run: TrainedRun, config: TrainConfig, method: MemoryMethod, left: str
) -> TrainedRun:
    """With what followed the first round, which owes nothing to others, done again."""
    join = {name: round_ for name, round_ in config.join.items() if name in run.sites}
    config = config.model_copy(update={"join": join})
    exchange, schedule = plan(config, method.extractor)
    names, members = sorted({*run.sites, left}), {}
    for name, model in run.sites.items():
        seed = site_seed(config.seed, names.index(name))
        options = config.memory(run.memory.dim)
        member = MemorySite(method.fitting[name], options, seed=seed, rounds=config.rounds)
        if (1, name) in _sent(run):
            exchange.accept(upload_of(run, config, name, model, 1))
            member.bank = rows_of_round(model.bank, 1).rescaled(float(member.n_patches))
        members[name] = member
    after = 1, exchange.merge(1)
    merged = bank_from(run_rounds(exchange, members, schedule, ledger=Ledger(), after=after))
    sites = {
        name: replace(model, bank=wire_exact(members[name].bank, config))
        for name, model in run.sites.items()
    }
    scale = distance_scale(merged, run.scoring)
    return replace(run, sites=sites, memory=merged, scale=scale)


def _one_more_round(run: TrainedRun, config: TrainConfig, method: MemoryMethod) -> TrainedRun:
    """After a round in which each site sends what the memory covers worst."""
    round_, dim = last_round(run) + 1, run.memory.dim
    sites: dict[str, SiteMemory] = {}
    for name, model in run.sites.items():
        member = method.members[name]
        member.bank = model.bank
        member.update(round_, run.memory)
        bank = wire_exact(member.bank, config)
        bank = bounded(bank, config.rows(dim) * config.rounds, member.seed)
        sites[name] = replace(model, bank=bank)
    return merge_again(replace(run, sites=sites), config)
