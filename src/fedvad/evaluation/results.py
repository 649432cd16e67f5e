"""What a run's evaluation is, typed: the Python form of `results.json`.

Every part can be read by attribute (`results.image_auroc.mean`), with types that a checker knows,
or by the key of the JSON form (`results["image_auroc"]["mean"]`); both stay. Keys that a file of an
earlier version lacks have their defaults and are not written back; keys that a later version added
are kept as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

from fedvad.data.checked import parse_values

__all__ = [
    "AtRate",
    "Costs",
    "Counts",
    "DataRead",
    "DriftFigures",
    "FilesSkipped",
    "FolderRead",
    "Gain",
    "Gains",
    "LearningCurve",
    "MaskCount",
    "MethodResults",
    "Metric",
    "OwnNormals",
    "Privacy",
    "Promised",
    "Results",
    "SiteRead",
    "SiteThreshold",
    "Thresholds",
]


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: what was given, under the keys of `results.json`."""
        return self.model_dump(exclude_unset=True)


class Metric(_Part):
    """One metric, each value in [0, 1]; None where the test images give none.

    mean, worst: over the sites that have it. pooled: all sites' images ranked together by score.
    """

    mean: float | None = None
    worst: float | None = None
    pooled: float | None = None
    sites: dict[str, float | None] = Field(default_factory=dict)


class MaskCount(_Part):
    """How many defective images the pixel metrics rest on, and by fault how many they do not."""

    defective: int = 0
    masked: int = 0
    faults: dict[str, int] = Field(default_factory=dict)


class Promised(_Part):
    """A false-alarm rate that normal images promise; see `evaluation.thresholds.Promise`."""

    rate: float
    confidence: float
    above: int
    images: int


class Counts(_Part):
    """Test images at the threshold: good ones, those of them it stops, defects, those it catches.

    good, defects: normal and anomalous images. stopped, caught: those with score > threshold.
    """

    good: int = 0
    stopped: int = 0
    defects: int = 0
    caught: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            good=self.good + other.good,
            stopped=self.stopped + other.stopped,
            defects=self.defects + other.defects,
            caught=self.caught + other.caught,
        )


class SiteThreshold(_Part):
    """One site's threshold, in the unit of its scores, and what it achieved on test images.

    n: held-out normal images behind it. fpr, recall: shares of the normal test images above it and
    of the defective ones, in [0, 1]; None without such images. counts: None without a threshold or
    test images, and in files of earlier versions.
    """

    threshold: float | None = None
    n: int = 0
    method: str | None = None
    promise: Promised | None = None
    fpr: float | None = None
    recall: float | None = None
    counts: Counts | None = None


class Thresholds(_Part):
    """All sites' thresholds; the means are over the sites that have test images for them."""

    target_fpr: float | None = None
    mean_fpr: float | None = None
    mean_recall: float | None = None
    sites: dict[str, SiteThreshold] = Field(default_factory=dict)


class AtRate(_Part):
    """Test images of all sites at the thresholds for another wanted false-alarm rate."""

    target_fpr: float
    counts: Counts


class Gain(_Part):
    """A gain in image AUROC with its 95 % bootstrap interval: low <= gain <= high."""

    gain: float
    low: float
    high: float

    @property
    def includes_zero(self) -> bool:
        """Whether the gain may be chance."""
        return self.low <= 0 <= self.high


class Gains(_Part):
    """Gains over a baseline: of the mean over sites, and at each site."""

    mean: Gain
    sites: dict[str, Gain] = Field(default_factory=dict)


class OwnNormals(_Part):
    """Scores of a site's unseen normal images with its own memory and with the federated one."""

    median_alone: float
    median_federated: float
    share_nearer: float


class DriftFigures(_Part):
    """How a site's normal test images score beside its calibration; see `evaluation.drift`."""

    ratio: float
    p: float
    n: int
    drifted: bool


class FolderRead(_Part):
    """A folder that was read; see `data.reading.Label`."""

    folder: str
    part: str
    label: str
    images: int
    rule: str
    notable: bool = False


class FilesSkipped(_Part):
    """Files that were not read, and why; see `data.reading.Skipped`."""

    folder: str
    reason: str
    files: int
    images: int
    example: str
    notable: bool = True


class SiteRead(_Part):
    """What one site's folder was read as; train, test: numbers of images."""

    layout: str
    train: int
    test: int
    read: list[FolderRead] = Field(default_factory=list)
    not_read: list[FilesSkipped] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)


class DataRead(_Part):
    """What was read of a data folder; complete: nothing was omitted or guessed."""

    complete: bool = True
    sites: dict[str, SiteRead] = Field(default_factory=dict)
    not_read: list[FilesSkipped] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)


class Costs(_Part):
    """What the rounds cost; bytes are of whole messages, seconds by phase and in total."""

    rounds: int = 0
    bytes_up_per_site_round: int = 0
    bytes_up_max: int = 0
    bytes_down_per_site_round: int = 0
    memory_rows: int = 0
    coverage: float | None = None
    rejected: int = 0
    distrusted: int = 0
    images_computed: int = 0
    seconds: dict[str, float] = Field(default_factory=dict)
    peak_rss_mb: float = 0.0


class Privacy(_Part):
    """What the configuration guarantees for one image of a site; see `docs/privacy.md`."""

    min_count: int = 1
    clip: float | None = None
    noise: float | None = None
    releases: int | None = None
    delta: float | None = None
    epsilon: float | None = None
    neighbours: str | None = None


class LearningCurve(_Part):
    """How a site's student learned: steps done, mean loss since the measurement before, and the
    loss on normal images held out from training; all lists are equally long.
    """

    at: list[int] = Field(default_factory=list)
    loss: list[float] = Field(default_factory=list)
    held_out: list[float] = Field(default_factory=list)


class MethodResults(_Part, Mapping[str, Any]):
    """What one method achieves at the sites of a data set; also a mapping of its JSON form.

    Examples
    --------
    >>> from fedvad.evaluation.results import MethodResults, Metric
    >>> found = MethodResults(image_auroc=Metric(mean=0.9, sites={"alder": 0.9}))
    >>> found.image_auroc.mean, found["image_auroc"]["mean"], list(found)
    (0.9, 0.9, ['image_auroc'])
    """

    image_auroc: Metric = Metric()
    average_precision: Metric = Metric()
    oracle_f1: Metric = Metric()
    pixel_auroc: Metric = Metric()
    aupro: Metric = Metric()
    pixel_images: dict[str, MaskCount] = Field(default_factory=dict)
    threshold: Thresholds = Thresholds()

    @property
    def sites(self) -> list[str]:
        """Every site with test images or a threshold, in the order of first mention."""
        return list(dict.fromkeys([*self.image_auroc.sites, *self.threshold.sites]))

    def __getitem__(self, key: str) -> Any:
        if key not in self.model_fields_set:
            raise KeyError(key)
        return self.model_dump(include={key}, exclude_unset=True)[key]

    def __iter__(self) -> Iterator[str]:  # type: ignore[override]
        return iter(self.model_dump(exclude_unset=True))

    def __len__(self) -> int:
        return len(self.model_fields_set)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and self.to_dict() == dict(other)

    __hash__ = None  # type: ignore[assignment]


class Results(MethodResults):
    """All that `train` and `evaluate` return; what only one of them knows is empty in the other.

    compare: results of each baseline. gain: over each baseline, None where no site has both
    classes. own_normals: of `train`. tradeoff: what other wanted false-alarm rates stop and catch,
    see `runs.tradeoff`. learning: of students, by site. training_images: by site. unreadable: one
    reason per image.
    reference, sites_never_trained_on, drift: of `evaluate`. verdict: the figures in words.
    """

    compare: dict[str, MethodResults] = Field(default_factory=dict)
    gain: dict[str, Gains | None] = Field(default_factory=dict)
    own_normals: dict[str, OwnNormals] = Field(default_factory=dict)
    tradeoff: list[AtRate] = Field(default_factory=list)
    learning: dict[str, LearningCurve] = Field(default_factory=dict)
    method: str | None = None
    backbone: str | None = None
    seed: int | None = None
    training_images: dict[str, int] = Field(default_factory=dict)
    unreadable: list[str] = Field(default_factory=list)
    data: DataRead | None = None
    ledger: Costs = Costs()
    privacy: Privacy | None = None
    reference: str | None = None
    sites_never_trained_on: list[str] = Field(default_factory=list)
    drift: dict[str, DriftFigures] = Field(default_factory=dict)
    verdict: str | None = None

    @classmethod
    def of(cls, ours: MethodResults, **more: Any) -> Self:
        """The results of a method, and more about them under the names of these attributes."""
        return cls(**{name: getattr(ours, name) for name in MethodResults.model_fields}, **more)

    @classmethod
    def parse(cls, values: Mapping[str, Any], what: str | Path) -> Self:
        """Results from their JSON form; raises `ArtefactError` naming `what` and a wrong value."""
        return parse_values(cls, values, what)

    @property
    def of_evaluate(self) -> bool:
        """Whether `evaluate` made them, not `train`."""
        return "sites_never_trained_on" in self

    @property
    def all_sites(self) -> list[str]:
        """As `sites`, with those that only a baseline knows."""
        others = [site for other in self.compare.values() for site in other.image_auroc.sites]
        return list(dict.fromkeys([*self.sites, *others]))
