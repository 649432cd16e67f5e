"""The server's step in a federation by files: from the sites' signed files to a global memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from fedvad.data.checked import parse_values
from fedvad.data.files import write_atomically
from fedvad.data.locks import only_one
from fedvad.data.sealed import read_sealed, write_sealed
from fedvad.errors import ArtefactError, ConfigError, FederationError, PayloadError
from fedvad.federation.codecs import Precision
from fedvad.federation.defence.robust import RobustConfig
from fedvad.federation.defence.validation import Limits
from fedvad.federation.exchange.memory import MemoryExchange, kind_of
from fedvad.federation.ledger import Ledger, RoundEntry
from fedvad.federation.payload import Payload, bank_from
from fedvad.federation.runners.state import RunState, load_state, save_state
from fedvad.federation.signed import (
    MAX_BYTES,
    SignedMessage,
    SigningKey,
    check_name,
    key_fingerprint,
    read_bounded,
    read_private_key,
    read_trusted_keys,
)
from fedvad.memory.merge import MergeMode
from fedvad.pipeline.config import Defence, TrainConfig, resolve_config
from fedvad.pipeline.guards import guard_output_file
from fedvad.pipeline.plan import upload_limits

__all__ = ["merge_uploads"]

_FEDERATION = "federation.json"
_SHARED = ("merge", "memory_rows", "precision", "seed", "defence", "malicious")


class _Federation(BaseModel):
    """What all rounds of a server must share."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    features: str
    dim: int = Field(ge=1)
    merge: MergeMode
    memory_rows: int | None
    precision: Precision
    seed: int
    patches_per_image: int | None = None
    upload_rows: int | None = None
    upload_bytes: int | None = None
    defence: Defence = "none"
    malicious: float = 1 / 3

    def exchange(self) -> MemoryExchange:
        return MemoryExchange(
            features=self.features,
            dim=self.dim,
            merge_mode=self.merge,
            size=self.memory_rows,
            precision=self.precision,
            seed=self.seed,
            limits=Limits(
                rows=self.upload_rows,
                patches_per_image=self.patches_per_image,
                upload_bytes=self.upload_bytes,
            ),
            defence=RobustConfig(self.malicious) if self.defence == "robust" else None,
        )


@dataclass(frozen=True, eq=False)
class _Upload:
    path: Path
    size: int
    payload: Payload

    @property
    def site(self) -> str:
        return self.payload.manifest.site

    @property
    def round(self) -> int:
        return self.payload.manifest.round


def merge_uploads(
    files: Sequence[Path],
    trust: Path | None,
    key: Path,
    state_dir: Path,
    out: Path,
    *,
    quorum: int = 1,
    features: str | None = None,
    config_file: Path | None = None,
    options: Mapping[str, Any] | None = None,
    max_bytes: int = MAX_BYTES,
) -> dict[str, Any]:
    """A server's round: check every file, merge those that pass, write the signed global memory.

    A file that is refused (reason in the result and the log) does not stop the others, as long as
    `quorum` sites passed. A file may come late: a site's rows count from the merge that they
    reach, and a site without a file keeps what it sent before. trust: the sites' public keys; the
    name of a key's file is the site that it speaks for. features: key of the feature
    configuration; by default what most files of the first merge have. options: `merge`,
    `memory_rows`, `precision`, `seed`, `defence`, `malicious`, `method` of `TrainConfig`. Uploads
    are limited by `upload_bytes` and `upload_rows` where the first merge's `config_file` has
    either. Without `files` the last global memory is written again.

    Raises `FederationError` when too few files pass (nothing is changed then), `ConfigError` for
    keys and options and when another process works on `state_dir`, `ArtefactError` for a damaged
    state.
    """
    with only_one(state_dir):
        return _merge_uploads(
            files, trust, key, state_dir, out, quorum, features, config_file, options, max_bytes
        )


def _merge_uploads(
    files: Sequence[Path],
    trust: Path | None,
    key: Path,
    state_dir: Path,
    out: Path,
    quorum: int,
    features: str | None,
    config_file: Path | None,
    options: Mapping[str, Any] | None,
    max_bytes: int,
) -> dict[str, Any]:
    signing = read_private_key(key)
    keys = [] if trust is None else [trust, *trust.glob("*.pub")]
    guard_output_file(
        out, "--out", others=[key, config_file, *keys, *files, *state_dir.glob("**/*")],
    )  # fmt: skip
    state = load_state(state_dir)
    if not files:
        if state is None:
            raise ConfigError("no file to merge, and no round was merged in this --state yet")
        return _write_global(state, signing, out, accepted={}, refused={})
    if trust is None:
        raise ConfigError("--trust is missing: the folder of the sites' public keys")
    trusted = read_trusted_keys(trust)
    given = {name: value for name, value in (options or {}).items() if value is not None}
    # a later round may leave all of it away
    config = resolve_config(config_file, **given) if given or config_file is not None else None
    round_ = 1 if state is None else state.round + 1
    refused: dict[str, str] = {}
    begun = None if state is None else _read_federation(state_dir)
    limiting = begun or (config if config is not None and _limits_uploads(config) else None)
    largest = Limits(upload_bytes=None if limiting is None else limiting.upload_bytes).max_bytes
    uploads = _read_uploads(files, trusted, round_, min(max_bytes, largest), refused)
    federation = _federation(begun, uploads, features, config)
    accepted: dict[str, list[_Upload]] = {}
    if federation is not None:
        exchange = federation.exchange()
        if state is not None:
            exchange.restore(state.server)
        accepted = _accept(exchange, uploads, refused)
    if federation is None or not accepted or len(accepted) < quorum:
        raise FederationError(
            f"round {round_} was not merged: files of {len(accepted)} sites pass, "
            f"{max(1, quorum)} are needed. Refused: "
            + ("; ".join(f"{name}: {reason}" for name, reason in refused.items()) or "none")
        )
    merged = exchange.merge(round_)
    ledger = Ledger() if state is None else state.ledger
    ledger.close_round(_entry(round_, accepted, refused, merged, exchange.distrusted))
    if state is None:  # the mark of the round comes after it, so a kill here is harmless
        write_sealed(state_dir / _FEDERATION, federation.model_dump(mode="json"))
    done = RunState(round_, merged, exchange.server_state(), {}, ledger)
    save_state(state_dir, done)
    return _write_global(done, signing, out, accepted=accepted, refused=refused)


def _read_uploads(
    files: Sequence[Path],
    trusted: dict[bytes, str],
    round_: int,
    max_bytes: int,
    refused: dict[str, str],
) -> list[_Upload]:
    """Uploads whose signature, content and claims are in order, by site and round."""
    uploads: dict[tuple[str, int], _Upload] = {}
    for path in files:
        name = ""
        try:
            data = read_bounded(path, max_bytes)
            signed = SignedMessage.parse(data)
            name = signed.check(trusted)
            payload = Payload.from_bytes(signed.message, max_bytes=max_bytes)
            upload = _Upload(path, len(data), payload)
            _check_claims(upload, name, round_)
            first = uploads.setdefault((upload.site, upload.round), upload)
            if first is not upload:
                raise PayloadError(f"duplicate: {first.path} is of the same site and round")
        except PayloadError as error:
            about = f"site {name}: " if name and f"site {name}" not in str(error) else ""
            refused[_distinct(str(path), refused)] = f"{about}{error}"
    return [uploads[key] for key in sorted(uploads)]


def _check_claims(upload: _Upload, name: str, round_: int) -> None:
    manifest = upload.payload.manifest
    if manifest.kind != "upload" or not manifest.site:
        raise PayloadError("it is a global memory, not the upload of a site")
    try:
        claimed = check_name(manifest.site)
    except ConfigError as error:
        raise PayloadError(str(error)) from error
    if claimed != name:
        raise PayloadError(
            f"it claims to be of site {manifest.site!r}, signed by the key of {name}"
        )
    if manifest.round > round_:
        raise PayloadError(
            f"it is of round {manifest.round}, but round {round_} is merged next: the site took "
            "part in another federation, or this --state is an old copy"
        )
    bank_from(upload.payload)


def _limits_uploads(config: TrainConfig) -> bool:
    return not config.model_fields_set.isdisjoint({"upload_bytes", "upload_rows"})


def _distinct(name: str, taken: Mapping[str, str]) -> str:
    count = 1
    while (shown := name if count == 1 else f"{name} ({count})") in taken:
        count += 1
    return shown


def _federation(
    begun: _Federation | None,
    uploads: Sequence[_Upload],
    features: str | None,
    config: TrainConfig | None,
) -> _Federation | None:
    """What this federation is: remembered, or settled by the first files; None without any."""
    wanted = config or resolve_config()
    chosen = {name: getattr(wanted, name) for name in _SHARED}
    if begun is not None:
        asked = {} if config is None else chosen
        asked = asked if features is None else asked | {"features": features}
        changed = [k for k, v in asked.items() if getattr(begun, k) != v]
        if changed:
            raise ConfigError(
                "this federation was begun with other options: "
                + ", ".join(f"{k} was {getattr(begun, k)!r}, now {asked[k]!r}" for k in changed)
                + "; leave them away, or begin anew with another --state"
            )
        return begun
    kinds = Counter(
        kind_of(u.payload) for u in uploads if features in (None, u.payload.manifest.features)
    ).most_common(2)
    if not kinds:
        return None
    if len(kinds) > 1 and kinds[0][1] == kinds[1][1]:
        shown = ", ".join(f"{k} with {d} values" for (k, d, _), _ in kinds)
        raise FederationError(
            "the files are of different feature configurations, and none has more of them than "
            f"another ({shown}): say which is meant with --features"
        )
    key, dim, patches = kinds[0][0]
    limits: dict[str, int | None] = {}
    if config is not None and _limits_uploads(config):
        allowed = upload_limits(config, dim, patches)
        limits = {"upload_rows": allowed.rows, "upload_bytes": allowed.upload_bytes}
    return _Federation(features=key, dim=dim, patches_per_image=patches, **limits, **chosen)


def _read_federation(state_dir: Path) -> _Federation:
    path = state_dir / _FEDERATION
    try:
        return parse_values(_Federation, read_sealed(path), str(path))
    except ArtefactError as error:
        raise ArtefactError(f"the server's state is damaged: {error}") from error


def _accept(
    exchange: MemoryExchange, uploads: Sequence[_Upload], refused: dict[str, str]
) -> dict[str, list[_Upload]]:
    accepted: dict[str, list[_Upload]] = {}
    for upload in uploads:
        try:
            exchange.accept(upload.payload)
        except PayloadError as error:
            refused[_distinct(str(upload.path), refused)] = str(error)
        else:
            accepted.setdefault(upload.site, []).append(upload)
    return accepted


def _entry(
    round_: int,
    accepted: Mapping[str, Sequence[_Upload]],
    refused: Mapping[str, str],
    merged: Payload,
    distrusted: Mapping[str, str],
) -> RoundEntry:
    return RoundEntry(
        round=round_,
        sites=sorted(accepted),
        bytes_up={site: sum(u.size for u in uploads) for site, uploads in accepted.items()},
        bytes_down={},
        rows_up={
            site: sum(len(u.payload.arrays["vectors"]) for u in uploads)
            for site, uploads in accepted.items()
        },
        memory_rows=len(merged.arrays["vectors"]),
        coverage=merged.manifest.coverage or 0.0,
        rejected=dict(refused),
        distrusted=dict(distrusted),
    )


def _write_global(
    state: RunState,
    key: SigningKey,
    out: Path,
    *,
    accepted: Mapping[str, Sequence[_Upload]],
    refused: Mapping[str, str],
) -> dict[str, Any]:
    signed = key.sign(state.merged.to_bytes())
    write_atomically(out, signed)
    manifest = state.merged.manifest
    return {
        "path": str(out),
        "bytes": len(signed),
        "round": state.round,
        "accepted": {site: [str(u.path) for u in uploads] for site, uploads in accepted.items()},
        "refused": dict(refused),
        "distrusted": dict(state.ledger.rounds[-1].distrusted) if accepted else {},
        "kept": sorted(set(state.server) - set(accepted)),
        "rows": len(state.merged.arrays["vectors"]),
        "n_images": manifest.n_images,
        "n_patches": manifest.n_patches,
        "features": manifest.features,
        "coverage": manifest.coverage,
        "fingerprint": key_fingerprint(key.public),
    }
