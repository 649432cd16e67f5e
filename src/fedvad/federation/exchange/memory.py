"""FedDyMem's exchange: sites send reduced memories, the server merges and hands them back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fedvad.detectors.memory.generator import Generator
from fedvad.detectors.memory.site import MemorySite
from fedvad.errors import FederationError, MemoryBankError, PayloadError
from fedvad.federation.codecs import Precision, downlink_precision, row_bytes
from fedvad.federation.defence.robust import RobustConfig, Verdict, defend
from fedvad.federation.defence.validation import Limits, check_upload, most_defects
from fedvad.federation.exchange.base import check_answer, check_incoming, merged_manifest
from fedvad.federation.payload import (
    WITH_ORIGIN,
    Manifest,
    Payload,
    bank_arrays,
    bank_from,
    negatives_from,
    own_arrays,
    with_negatives,
)
from fedvad.memory.bank import LazyBanks, MemoryBank, concatenate, joined_origin
from fedvad.memory.distances import nearest
from fedvad.memory.merge import MergeMode, coverage, merged_parts, sampled_rows
from fedvad.memory.origin import Origin, Source, origin_arrays

Arrays = dict[str, npt.NDArray[Any]]

# what every precision on the wire can hold, and no distance overflows
_LARGEST = float(np.finfo(np.float16).max)
_DRIFT_ROWS = 500
_COVERAGE_ROWS = 20_000


def kind_of(upload: Payload) -> tuple[str, int, int]:
    """Features key, values per row and patches per image of an upload; raises `PayloadError`."""
    manifest = upload.manifest
    patches = max(1, -(-manifest.n_patches // max(1, manifest.n_images)))
    return manifest.features, bank_from(upload).dim, patches


class MemoryExchange:
    """Memories up, merged memory down; all sites weigh as many patches as they have.

    Sites may send patches of confirmed defects along, each time all that are to count. They go to
    all sites, unless the defence leaves their site out.

    merge_mode, size, temper: see `merge_banks`. precision: the codec of vectors on the wire.
    limits: what an upload may claim. defence: how much the merge distrusts the sites (None: not at
    all); then `verdict` holds, after each merge, what it left out and why.
    """

    def __init__(
        self,
        *,
        features: str,
        dim: int,
        merge_mode: MergeMode = "concat",
        size: int | None = None,
        precision: Precision = "float16",
        seed: int = 0,
        limits: Limits | None = None,
        defence: RobustConfig | None = None,
        temper: float = 1.0,
    ) -> None:
        self.features = features
        self.dim = dim
        self.merge_mode = merge_mode
        self.size = size
        self.temper = temper
        self.precision = precision
        self.seed = seed
        self.limits = Limits() if limits is None else limits
        self.defence = defence
        self.verdict: Verdict | None = None
        self._sites: dict[str, Payload] = {}
        self._start = Generator.identity(dim).hash()

    def site_step(self, state: MemorySite, incoming: Payload | None, round_: int) -> Payload:
        """One site's round: update its memory from what is known, send the reduced rows."""
        known = None
        if incoming is not None:
            check_incoming(incoming, self.features)
            known = bank_from(incoming)
            if known.dim != self.dim:
                raise FederationError(
                    f"expected a global memory of {self.dim} values per row, got one of {known.dim}"
                )
        # a patch of a defect takes the place of as many rows as it has bytes
        place = -(-row_bytes("int8", self.dim) // row_bytes(self.precision, self.dim))
        most = most_defects(state.config.rows) // place
        defects = state.answered.sent_defects(most, state.features.where, self.dim)
        state.reserved = place * len(defects)
        rows = state.update(round_, known if known is not None and len(known) else None)
        manifest = Manifest(
            kind="upload",
            site=state.features.where,
            round=round_,
            mode="append" if state.config.update == "grow" else "replace",
            features=self.features,
            generator=self._start,
            n_images=len(state.features),
            n_patches=state.n_patches,
        )
        sent = Payload(manifest, bank_arrays(rows, self.precision))
        return with_negatives(sent, MemoryBank.of_patches(defects), "int8")

    def accept(self, payload: Payload) -> None:
        """See `Exchange.accept`: refuses other features, generators, lengths, stale rounds."""
        before = self._sites.get(payload.manifest.site)
        manifest = check_answer(payload, before, self.features, self._start)
        bank, negatives = bank_from(payload), negatives_from(payload)
        for part in (bank,) if negatives is None else (bank, negatives):
            if part.origin is not None:
                raise PayloadError(
                    f"site {manifest.site} says whose its rows are: they are its own"
                )
            if part.dim != self.dim or len(part) == 0:
                raise PayloadError(
                    f"site {manifest.site} sent {len(part)} rows of {part.dim} values"
                )
            if np.abs(part.vectors).max() > _LARGEST or part.spread.max() > _LARGEST:
                raise PayloadError(f"site {manifest.site} sent values beyond the range of float16")
        check_upload(manifest, bank, negatives, before, self.limits)
        source = Source(manifest.site, manifest.round)
        bank = replace(bank, origin=Origin.of([source], np.zeros(len(bank), np.int64)))
        coded = own_arrays(payload)
        if before is not None and manifest.mode == "append":
            bank = concatenate([bank_from(before), bank])
            coded = bank_arrays(bank, _common_precision(before.arrays, coded))
        try:
            bank = bank.rescaled(float(manifest.n_patches))
        except MemoryBankError as error:
            raise PayloadError(
                f"site {manifest.site}: weights do not scale to {manifest.n_patches} patches: "
                f"{error}"
            ) from error
        # vectors as they came: half the memory of float32 in the default precision
        coded = coded | {"weights": bank.weights.astype(np.float32)}
        stored = _with_origin(manifest, coded, bank.origin)
        bank_from(stored)  # weights too far apart for float32 must not stop a later merge
        if negatives is not None:
            whose = Origin.of([source], np.zeros(len(negatives), np.int64))
            stored = with_negatives(stored, replace(negatives, origin=whose), "float32")
        self._sites[manifest.site] = stored

    def merge(self, round_: int, without: Collection[str] = ()) -> Payload:
        """See `Exchange.merge`; a site that is missing this round keeps its last memory, unless it
        is in `without`.
        """
        sites = {name: sent for name, sent in self._sites.items() if name not in without}
        if not sites:
            raise FederationError("no site has answered: nothing to merge")
        banks: Mapping[str, MemoryBank] = LazyBanks(sites, lambda name: bank_from(sites[name]))
        if self.defence is not None:
            self.verdict = defend(banks, self.defence, seed=self.seed)
            banks = self.verdict.banks
        parts = merged_parts(
            banks,
            mode=self.merge_mode,
            size=self.size,
            seed=self.seed * 1009 + round_,
            temper=self.temper,
        )
        covered = 0.0  # of several parts, which hold every row
        if len(parts) == 1:
            merged = next(iter(parts))
            covered = coverage(sampled_rows(banks, _COVERAGE_ROWS, 0), merged.vectors)
        manifest = merged_manifest(round_, sites.values(), coverage=covered)
        sent = _joined(manifest, parts, downlink_precision(self.precision))
        every = [negatives_from(sites[name]) for name in sorted(sites) if name in banks]
        found = [negatives for negatives in every if negatives is not None]
        return with_negatives(sent, concatenate(found), "float16") if found else sent

    @property
    def kind(self) -> tuple[str, ...]:
        """See `Exchange.kind`."""
        patches = self.limits.patches_per_image
        more = () if patches is None else (f"{patches} patches per image",)
        return self.features, f"rows of {self.dim} values", *more

    @property
    def max_bytes(self) -> int:
        """See `Exchange.max_bytes`."""
        return self.limits.max_bytes

    @property
    def distrusted(self) -> dict[str, str]:
        """See `Exchange.distrusted`."""
        return {} if self.verdict is None else dict(self.verdict.reasons)

    def drift(self, before: Payload, after: Payload) -> float:
        """Mean distance of (a sample of) the new memory's rows to the old memory."""
        import torch

        old, new = bank_from(before).vectors, bank_from(after).vectors
        chosen = np.random.default_rng(0).permutation(len(new))[:_DRIFT_ROWS]
        squared, _ = nearest(torch.from_numpy(new[np.sort(chosen)]), torch.from_numpy(old))
        return float(squared.sqrt().mean())

    def server_state(self) -> Mapping[str, Payload]:
        """See `Exchange.server_state`."""
        return dict(self._sites)

    def restore(self, state: Mapping[str, Payload]) -> None:
        """Continue from a saved `server_state`."""
        self._sites = dict(state)


def _with_origin(manifest: Manifest, arrays: Arrays, origin: Origin | None) -> Payload:
    """Rows as the server keeps and hands them out: with the site and round of each."""
    if origin is None:
        return Payload(manifest, arrays)
    arrays = arrays | origin_arrays(origin.without_images())
    return Payload(manifest.model_copy(update={"schema_version": WITH_ORIGIN}), arrays)


def _joined(manifest: Manifest, parts: Collection[MemoryBank], precision: Precision) -> Payload:
    """All rows of all parts as one message, by a codec that takes them row by row."""
    arrays: Arrays = {}
    rows, start = sum(map(len, parts)), 0
    for bank in parts:
        for name, own in bank_arrays(bank, precision).items():
            if name not in arrays:
                arrays[name] = np.empty((rows, *own.shape[1:]), own.dtype)
            arrays[name][start : start + len(own)] = own
        start += len(bank)
    return _with_origin(manifest, arrays, joined_origin(parts))


def _common_precision(*several: Arrays) -> Precision:
    """The least that holds what all of these arrays hold, to the bit."""
    kinds = {arrays[name].dtype for arrays in several for name in ("vectors", "spread")}
    return "float16" if kinds == {np.dtype(np.float16)} else "float32"
