"""Thresholds of a federation by files: each site's scores go up signed, thresholds come back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from fedvad.data.checked import Stored, first_fault
from fedvad.data.files import write_atomically
from fedvad.errors import ConfigError, FederationError, PayloadError
from fedvad.federation.signed import (
    SignedMessage,
    SigningKey,
    read_bounded,
    read_private_key,
    read_trusted_keys,
)
from fedvad.runs.guards import guard_output_file
from fedvad.runs.run import Run
from fedvad.runs.run_folder import read_config
from fedvad.runs.site_scores import SCORES, THRESHOLDS, Found, adopt, federated, scores_of

_MAX_BYTES = 1 << 20
_Text = Annotated[str, Field(min_length=1, max_length=255)]
_Model = TypeVar("_Model", bound=BaseModel)


class _Sent(Stored):
    """Scores of one site; shared: hash of what gave them, which all sites have."""

    kind: Literal["scores"]
    site: _Text
    shared: _Text
    target_fpr: Annotated[float, Field(gt=0, le=0.5)]
    scores: dict[Literal["union", "global"], Annotated[list[float], Field(max_length=10_000)]]


class _Returned(Stored):
    """Thresholds by site and reference."""

    kind: Literal["thresholds"]
    shared: _Text
    thresholds: dict[_Text, dict[Literal["union", "global"], Found]]


def export_scores(run: Path, key: Path, out: Path) -> dict[str, Any]:
    """Write the scores behind the thresholds of a site's run folder as one signed file.

    Raises `ConfigError` for a run whose thresholds do not rest on other sites, `ArtefactError`.
    """
    config = read_config(run)
    if config.threshold_rule != "federated":
        raise ConfigError(
            f"{run} has threshold_rule {config.threshold_rule!r}: it needs no other scores"
        )
    shared, site = _of(run)
    signing = read_private_key(key)
    guard_output_file(out, "--out", others=[key, *run.glob("**/*")], own=signing.beginning)
    scores = scores_of(run, site)
    values = {"site": site, "shared": shared, "target_fpr": config.target_fpr, SCORES: scores}
    _write(out, signing, {"kind": "scores"} | values)
    return {"path": str(out), "site": site, "scores": {name: len(s) for name, s in scores.items()}}


def merge_scores(files: Sequence[Path], trust: Path, key: Path, out: Path) -> dict[str, Any]:
    """Find each site's thresholds from the signed scores of all, as one signed file.

    trust: the sites' public keys. A file that is refused, with its reason in the result, stops no
    other. Raises `FederationError` when fewer than two sites are left, or when their scores are of
    different memories or targets.
    """
    signing, trusted = read_private_key(key), read_trusted_keys(trust)
    keys = [trust, *trust.glob("*.pub")]
    guard_output_file(out, "--out", others=[key, *keys, *files], own=signing.beginning)
    sent: dict[str, _Sent] = {}
    refused: dict[str, str] = {}
    for path in files:
        try:
            name, message = _read(path, trusted, _Sent)
            if message.site != name:
                raise PayloadError(f"it claims to be of site {message.site!r}, and is of {name}")
            if name in sent:
                raise PayloadError(f"duplicate: another file is of site {name}")
            sent[name] = message
        except PayloadError as error:
            refused[str(path)] = str(error)
    if len(sent) < 2:
        why = "; ".join(f"{path}: {reason}" for path, reason in refused.items()) or "none"
        raise FederationError(
            f"thresholds need the scores of two sites, and {len(sent)} passed. Refused: {why}"
        )
    kinds = {name: (message.shared, message.target_fpr) for name, message in sorted(sent.items())}
    if len(set(kinds.values())) > 1:
        shown = "; ".join(
            f"{name}: {shared}, {target:g}" for name, (shared, target) in kinds.items()
        )
        raise FederationError(
            f"the scores are of different memories or target rates ({shown}): import the same "
            "global file at every site, then export the scores again"
        )
    shared, target = next(iter(kinds.values()))
    scores = {
        name: {str(r): own for r, own in message.scores.items()} for name, message in sent.items()
    }
    found = federated(scores, target)
    _write(out, signing, {"kind": "thresholds", "shared": shared, THRESHOLDS: found})
    return {"path": str(out), "sites": sorted(sent), "refused": refused, THRESHOLDS: found}


def apply_thresholds(file: Path, run: Path, trust: Path) -> dict[str, Any]:
    """Give a site's run folder the thresholds that a server found with the scores of all sites.

    trust: the server's public key. Raises `PayloadError` naming the file for one that is not to be
    trusted, is of another memory, or has nothing for this site.
    """
    if trust.is_dir():
        raise ConfigError(f"{trust} is a folder: --trust takes the server's one public key here")
    shared, site = _of(run)
    try:
        _, message = _read(file, read_trusted_keys(trust), _Returned)
        if message.shared != shared:
            raise PayloadError("its thresholds are of another memory than this run's")
        if site not in message.thresholds:
            raise PayloadError(f"it has no thresholds for site {site}")
        own = message.thresholds[site]
        adopt(run, site, {THRESHOLDS: {name: found.model_dump() for name, found in own.items()}})
    except PayloadError as error:
        raise PayloadError(f"{file}: {error}") from error
    return {"site": site, "threshold": Run.load(run).limit(site)}


def _of(folder: Path) -> tuple[str, str]:
    """Hash of what all sites share in a run folder, and the name of its one site."""
    run = Run.load(folder)
    if len(run.sites) != 1:
        raise ConfigError(f"{folder} is of {len(run.sites)} sites: give the run folder of one")
    return run.shared_hash(), next(iter(run.sites))


def _write(out: Path, key: SigningKey, values: Mapping[str, Any]) -> None:
    write_atomically(out, key.sign(json.dumps(values, sort_keys=True).encode()))


def _read(path: Path, trusted: dict[bytes, str], model: type[_Model]) -> tuple[str, _Model]:
    """Who signed a file, and what it says; raises `PayloadError`."""
    signed = SignedMessage.parse(read_bounded(path, _MAX_BYTES))
    name = signed.check(trusted)
    try:
        return name, model.model_validate_json(signed.message)
    except ValidationError as error:
        raise PayloadError(f"not a file of this step: {first_fault(error)}") from error
