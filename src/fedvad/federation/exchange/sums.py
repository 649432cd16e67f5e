"""The exchange of sums: keys, then means, then scatters about the mean of all, added up exactly.

Round 1 agrees on keys for the masks, round 2 sums the images' means, round 3 their scatters. What
a site sends in rounds 2 and 3 is a sum over its images in fixed-point numbers, with its share of
the noise and, with `secure`, under masks that cancel in the total alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt

from fedvad.detectors.sums.gaussian import Gaussian
from fedvad.detectors.sums.site import SumsConfig, SumsSite
from fedvad.detectors.sums.statistics import Space, scatter_bound
from fedvad.errors import ConfigError, FederationError, PayloadError, join_names
from fedvad.federation.exchange.base import check_answer, check_incoming, merged_manifest
from fedvad.federation.masks import from_fixed, mask, new_secret, public_key, to_fixed
from fedvad.federation.payload import Manifest, Payload
from fedvad.federation.privacy import gaussian_mu
from fedvad.mergeable import merge_states

Arrays = dict[str, npt.NDArray[Any]]
ROUNDS = 3
# of the budget, as squares of mu: chosen on hazelnuts under six lights
_MEAN_SHARE = 0.3
_MEAN_CHANGE, _SCATTER_CHANGE = 2.0, math.sqrt(2.0)
_ARRAYS = {
    "form", "key", "names", "keys", "mean", "bound", "scatter", "noise", "images",
}  # fmt: skip
_LARGEST = 1 << 16
_HEADER_BYTES = (1 << 16) + 8


def start_of(space: Space, config: SumsConfig) -> str:
    """What all sites must share besides features: the space and the protection, as a hash."""
    protection = f"{config.grid} {config.epsilon} {config.delta} {config.secure}"
    return sha256(space.projection.tobytes() + protection.encode()).hexdigest()[:16]


class SumsExchange:
    """Sums up, averages over all images down.

    Parameters
    ----------
    features : str
        Key of the feature configuration.
    config : SumsConfig
    size : int
        Dimensions of the space: of `config`, or as many as a patch has values.
    dim : int
        Values of a patch.
    start : str
        See `start_of`.

    Examples
    --------
    >>> from fedvad.detectors.sums.site import SumsConfig
    >>> from fedvad.federation.exchange.sums import SumsExchange
    >>> SumsExchange(features="key", config=SumsConfig(), size=128, dim=384, start="s").max_bytes
    131592
    """

    def __init__(
        self, *, features: str, config: SumsConfig, size: int, dim: int, start: str
    ) -> None:
        self.features = features
        self.config = config
        self.size = size
        self.start = start
        self._form: Arrays = {"form": _form(size, dim, config)}
        self._published: Arrays = dict(self._form)
        self._sites: dict[str, Payload] = {}
        mu = math.inf if config.epsilon is None else gaussian_mu(config.epsilon, config.delta)
        self._mean_noise = _MEAN_CHANGE / (mu * math.sqrt(_MEAN_SHARE))
        self._scatter_noise = _SCATTER_CHANGE / (mu * math.sqrt(1 - _MEAN_SHARE))

    def site_step(self, state: SumsSite, incoming: Payload | None, round_: int) -> Payload:
        """A site's key, mean or scatter, whichever is next after `incoming`."""
        published: Arrays = {}
        if incoming is not None:
            check_incoming(incoming, self.features)
            published = incoming.arrays
            self._check_published(published)
        arrays = dict(self._form)
        stage = _stage(published)
        if stage == "key":
            if self.config.secure:
                state.secret = state.secret or new_secret()
            key = public_key(state.secret) if self.config.secure else bytes(32)
            arrays["key"] = np.frombuffer(key, np.uint8)
        else:
            arrays[stage] = self._sum(state, stage, published, round_)
        manifest = Manifest(
            kind="upload",
            site=state.features.where,
            round=round_,
            features=self.features,
            generator=self.start,
            n_images=len(state.features),
            n_patches=state.n_patches,
        )
        return Payload(manifest, arrays)

    def accept(self, payload: Payload) -> None:
        """See `Exchange.accept`: refuses other features, starts, stages, shapes, stale rounds."""
        before = self._sites.get(payload.manifest.site)
        manifest = check_answer(payload, before, self.features, self.start)
        if manifest.n_images < 1:
            raise PayloadError(f"site {manifest.site} says that it summed no image")
        stage = _stage(self._published)
        wanted = {"form": (self._form["form"].shape, np.float64), stage: self._shape(stage)}
        if set(payload.arrays) != set(wanted):
            raise PayloadError(
                f"site {manifest.site} must hold {join_names(wanted)} in this round; it holds "
                f"{join_names(payload.arrays)}"
            )
        for name, (shape, dtype) in wanted.items():
            array = payload.arrays[name]
            if array.shape != shape or array.dtype != dtype:
                raise PayloadError(f"site {manifest.site}: {name} is not of shape {shape}")
        if not np.array_equal(payload.arrays["form"], self._form["form"]):
            raise PayloadError(
                f"site {manifest.site}: its form is not that of the federation, or not finite"
            )
        if stage != "key" and self.config.secure and manifest.site not in _keys(self._published):
            raise PayloadError(
                f"site {manifest.site} sent no key in round 1, so the masks are for other sites"
            )
        self._sites[manifest.site] = payload

    def merge(self, round_: int, without: Collection[str] = ()) -> Payload:
        """See `Exchange.merge`; of this round's answers.

        Raises `FederationError` under masks where a site of round 1 did not answer, or is left out.
        """
        known = {name: p for name, p in sorted(self._sites.items()) if name not in without}
        if not known:
            raise FederationError("no site has answered: nothing to merge")
        answered = {name: p for name, p in known.items() if p.manifest.round == round_}
        stage = _stage(self._published)
        if answered and stage == "key":
            keys = [payload.arrays["key"] for payload in answered.values()]
            names = np.frombuffer("\n".join(answered).encode(), np.uint8)
            self._published |= {"names": names, "keys": np.stack(keys)}
        elif answered:
            self._check_all_here(answered, round_)
            total = from_fixed(merge_states(payload.arrays[stage] for payload in answered.values()))
            images = sum(payload.manifest.n_images for payload in answered.values())
            about = self._about(stage, total, images, len(answered))
            self._published |= {stage: total / images} | about
        manifest = merged_manifest(round_, known.values(), generator=self.start)
        return Payload(manifest, dict(self._published))

    @property
    def kind(self) -> tuple[str, ...]:
        """See `Exchange.kind`."""
        return self.features, f"sums in {self.size} dimensions", f"start {self.start}"

    @property
    def max_bytes(self) -> int:
        """See `Exchange.max_bytes`: of the largest sum, and a header."""
        return largest_upload(self.config.grid, self.size)

    @property
    def distrusted(self) -> Mapping[str, str]:
        """See `Exchange.distrusted`: nobody is; a sum does not show who spoilt it."""
        return {}

    def drift(self, before: Payload, after: Payload) -> float:
        """Length of the change of the mean, relative to its length; 0 before there are two."""
        if "mean" not in before.arrays or "mean" not in after.arrays:
            return 0.0
        old, new = before.arrays["mean"], after.arrays["mean"]
        return float(np.linalg.norm(new - old)) / max(float(np.linalg.norm(old)), 1e-12)

    def server_state(self) -> Mapping[str, Payload]:
        """See `Exchange.server_state`; what was handed out is kept under no site's name."""
        if not self._sites:
            return {}
        round_ = max(payload.manifest.round for payload in self._sites.values())
        manifest = merged_manifest(round_, self._sites.values(), generator=self.start)
        return {"": Payload(manifest, dict(self._published)), **self._sites}

    def restore(self, state: Mapping[str, Payload]) -> None:
        """Continue from a saved `server_state`."""
        self._sites = {name: payload for name, payload in state.items() if name}
        self._published = dict(state[""].arrays if "" in state else self._form)

    def _sum(self, state: SumsSite, stage: str, published: Arrays, round_: int) -> Any:
        keys, site = _keys(published), state.features.where
        if self.config.secure and len(keys) < 2:
            raise FederationError(
                f"{site} is the only site, so masks hide nothing of its sums: wait "
                "for another site, or send them without (masks = false)"
            )
        share = 1 / math.sqrt(self._noisy(len(keys)))
        if stage == "mean":
            total = state.mean_sum(share * self._mean_noise)
        else:
            bound = float(published["bound"][0])
            centre = published["mean"] * self.config.grid
            total = state.scatter_sum(centre, bound, share * bound * self._scatter_noise)
        fixed = to_fixed(total)
        if self.config.secure:
            fixed = fixed + mask(site, state.secret, keys, round_=round_, shape=fixed.shape)
        return fixed

    def _shape(self, stage: str) -> tuple[tuple[int, ...], Any]:
        cells, size = self.config.grid**2, self.size
        if stage == "key":
            return (32,), np.uint8
        return (cells, size if stage == "mean" else size * (size + 1) // 2), np.uint64

    def _check_published(self, published: Arrays) -> None:
        """Raise `FederationError` for a message that no server of this federation made."""
        names = published.get("names", np.zeros(0, np.uint8)).tobytes().split(b"\n")
        shapes = self._form | {"keys": np.zeros((len(names), 32), np.uint8)}
        if "mean" in published:
            shapes |= {"mean": np.zeros((self.config.grid**2, self.size)), "bound": np.zeros(1)}
        for name, like in shapes.items():
            array = published.get(name, np.zeros(0))
            if (array.shape, array.dtype) != (like.shape, like.dtype):
                raise FederationError(f"the sums handed out hold no {name} of shape {like.shape}")
            if not np.isfinite(array).all():
                raise FederationError(
                    f"{name} of the sums handed out holds values that are no numbers"
                )
        if not np.array_equal(published["form"], self._form["form"]):
            raise FederationError("the sums handed out are of another form")
        if "bound" in shapes and not published["bound"][0] > 0:
            raise FederationError("the bound of the sums handed out is not positive")

    def _check_all_here(self, answered: Collection[str], round_: int) -> None:
        missing = sorted(set(_keys(self._published)) - set(answered))
        if missing and self.config.secure:
            raise FederationError(
                f"round {round_} cannot be summed: {', '.join(missing)} sent no valid sum, "
                "and the masks of the others cancel only together with it; run the round again "
                "when it is there, or begin again without it"
            )

    def _noisy(self, sites: int) -> int:
        """Number of sites whose noise together is that of the mechanism: without masks each on its
        own; under masks all but one, which knows its own noise and must not see through the rest.
        """
        return max(1, sites - 1) if self.config.secure else 1

    def _about(self, stage: str, total: Any, images: int, sites: int) -> Arrays:
        """What sites need besides an average: the bound of scatters, the noise in them."""
        times = math.sqrt(sites / self._noisy(sites))
        if stage == "scatter":
            noise = times * float(self._published["bound"][0]) * self._scatter_noise / images
            return {"noise": np.array([noise]), "images": np.array([images], np.int64)}
        noise = times * self._mean_noise / images
        return {"bound": np.array([scatter_bound(total / images, noise)])}


def has_sums(payload: Payload) -> bool:
    """Whether a message holds sums, or a key for them: nothing of a memory and no weights."""
    return set(payload.arrays) <= _ARRAYS and "form" in payload.arrays


def largest_upload(grid: int, size: int) -> int:
    """Bytes of the scatters of grid x grid parts in `size` dimensions, and of a header."""
    return 8 * grid**2 * (size * (size + 1) // 2) + _HEADER_BYTES


def _form(size: int, dim: int, config: SumsConfig) -> npt.NDArray[np.float64]:
    """What a server without images needs: dimensions, values of a patch, and the protection."""
    epsilon = 0.0 if config.epsilon is None else config.epsilon
    return np.array([size, dim, config.grid, epsilon, config.delta, config.secure], np.float64)


def sums_for(upload: Payload) -> SumsExchange:
    """The exchange of uploads like this one, for a server without images.

    Raises `PayloadError` for an upload that holds no sums.
    """
    form = upload.arrays.get("form")
    if form is None or form.dtype != np.float64 or form.shape != (6,):
        raise PayloadError(
            f"the message must hold sums and their form; it holds {join_names(upload.arrays)}"
        )
    size, dim, grid, epsilon, delta, secure = form.tolist()
    if not (0 < size <= dim <= _LARGEST and 0 < grid <= _LARGEST and 0 <= epsilon < math.inf):
        raise PayloadError("the form of the sums holds values that are not finite or out of range")
    config = SumsConfig(int(size), int(grid), epsilon or None, delta, bool(secure))
    manifest = upload.manifest
    try:
        return SumsExchange(
            features=manifest.features, config=config, size=int(size), dim=int(dim),
            start=manifest.generator,
        )  # fmt: skip
    except ConfigError as error:
        raise PayloadError(f"the form of the sums: {error}") from error


def gaussian_from(merged: Payload, space: Space) -> Gaussian:
    """What the last round made of the sums.

    Raises `PayloadError` for a message of an earlier round, or of another space.
    """
    arrays, size = merged.arrays, space.size
    shapes = {"mean": (space.cells, size), "scatter": (space.cells, size * (size + 1) // 2)}
    for name, shape in (shapes | dict.fromkeys(("bound", "noise", "images"), (1,))).items():
        if name not in arrays or arrays[name].shape != shape:
            raise PayloadError(f"the message holds no {name} of shape {shape}: rounds are missing")
        if not np.isfinite(arrays[name]).all():
            raise PayloadError(f"{name} of the message holds values that are no numbers")
    if arrays["images"][0] < 1:
        raise PayloadError("the sums of the message are of no image")
    return Gaussian(
        arrays["mean"], arrays["scatter"], int(arrays["images"][0]),
        bound=float(arrays["bound"][0]), noise=float(arrays["noise"][0]),
    )  # fmt: skip


def _stage(published: Mapping[str, Any]) -> str:
    """What sites send next."""
    for name, stage in (("keys", "key"), ("mean", "mean"), ("scatter", "scatter")):
        if name not in published:
            return stage
    raise FederationError(
        f"the sums are complete after {ROUNDS} rounds: nothing is sent after that"
    )


def _keys(published: Arrays) -> dict[str, bytes]:
    names = published["names"].tobytes().decode().split("\n")
    return dict(zip(names, (key.tobytes() for key in published["keys"]), strict=True))
