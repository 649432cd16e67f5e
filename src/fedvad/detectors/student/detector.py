"""Students as detectors: where one fails to imitate its teacher, something is odd."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from fedvad.data.bounds import MAX_BAD
from fedvad.data.contents import normals
from fedvad.data.folders import ImageSet
from fedvad.detectors.base import Arrays, Detector, Pictures, Scores, Values, collected
from fedvad.detectors.scoring import ScoringConfig, image_score, smooth
from fedvad.detectors.student.kept import option_names, plain, restored, tupled
from fedvad.detectors.student.loss import Combine
from fedvad.detectors.student.parameters import (
    buffers_of,
    load_buffers,
    load_parameters,
    parameters_of,
    under,
)
from fedvad.detectors.student.pixels import Mapper, mapped
from fedvad.detectors.student.site import StudentSite
from fedvad.detectors.student.training import TrainConfig, TrainLog
from fedvad.errors import ConfigError, MismatchError, check_choice, check_ranges
from fedvad.features.engine import make_engine
from fedvad.features.extractor import FeatureExtractor
from fedvad.memory.bank import FloatArray

if TYPE_CHECKING:
    import torch

    from fedvad.detectors.student.branches import PaSTeNet
    from fedvad.detectors.student.cost import Memory
    from fedvad.detectors.student.graphs import MapNet

_Pixels = npt.NDArray[np.uint8]
_TRAIN = TrainConfig(decay="cosine", patience=None, validate_every=50)


@dataclass(kw_only=True, eq=False, repr=False)
class StudentDetector(Detector):
    """Scores by the distance between a frozen teacher and a student trained on normal images.

    layers: layers of the backbone to distil, counted as the backbone does; None takes the
    extractor's. combine: see `combine_maps`. train: options of the training. held_out: share of
    the normal images that are not trained on; they decide when to stop, and give the scale of the
    scores. smooth, top: as in `ScoringConfig`; by default as in the paper, without smoothing and
    with the maximum. jitter: also learn each image under three other lights, with brightness and
    contrast scaled by up to 1 +- this; 0 switches it off. cache_bytes: limit of the memory for what
    is computed only once, see `TrainingSet`.

    Map: m = M / s, where M is the combined map of the levels, and s the median image score of M
    over the held-out normal images (over the training images, if there is only one image). So a
    typical unseen normal image scores 1, at every site and with every backbone. This scale is ours.

    parts: what sites train and average, one after another. recipe: images that each part is
    trained on in total, as in the method's paper. own_values: values of `state` that stay each
    site's own when sites share a student. site: what trains. net_: the trained net. scale_: s.
    log_: how the training went.
    """

    parts: ClassVar[tuple[str, ...]] = ("student",)
    recipe: ClassVar[Mapping[str, int]] = {"student": 25_600}
    own_values: ClassVar[tuple[str, ...]] = ("scale", "log")
    site: ClassVar[type[StudentSite]] = StudentSite

    layers: tuple[int, ...] | None = None
    combine: Combine = "product"
    held_out: float = 0.2
    smooth: int = ScoringConfig.smooth
    top: float = ScoringConfig.top
    jitter: float = 0.0
    cache_bytes: int = 256 << 20
    max_bad: float = MAX_BAD
    train: TrainConfig = _TRAIN

    def __post_init__(self) -> None:
        # compiling takes an engine seconds, so what scores is kept with its net
        self._mapper: Mapper | None = None
        self._grid = (0, 0)
        self.net_: PaSTeNet | None = None
        self.scale_: float | None = None
        self.log_: TrainLog | None = None

    def network(self) -> PaSTeNet:
        """The net as it is before training: equal for equal seeds, at every site.

        Raises `ConfigError` for options or a backbone that do not go with it.
        """
        from fedvad.detectors.student.branches import build_net

        self._check()
        network, _, layers = self._taps()
        net = build_net(network, layers, bootstrap=self._bootstrap(), seed=self.seed)
        return net.to(self.extractor.config.device)

    def starts(self) -> dict[str, torch.nn.Module]:
        """The `parts`, in their order, as they are before training: equal for equal seeds, at every
        site. `StudentSite.part` trains one.
        """
        return self._parts(self.network())

    @classmethod
    def round_training(cls) -> TrainConfig:
        """How a site trains in rounds; how many steps is said by `TrainConfig.in_rounds`."""
        return TrainConfig(warmup=5, patience=None)

    @classmethod
    def round_options(
        cls, table: Mapping[str, Any], train: TrainConfig, steps: int | None
    ) -> dict[str, Any]:
        """Options of the constructor from a configuration's table, for a site that trains in rounds
        by `train`; tables within it, where keys may be missing, become what the constructor takes.
        steps: of a round, where the configuration says so. Raises `TypeError` for keys that do not
        belong there, `ConfigError` for values.
        """
        tables = {
            name: replace(getattr(cls, name), **tupled(value))
            for name, value in table.items()
            if is_dataclass(getattr(cls, name, None))
        }
        return dict(table) | tables

    def fresh(self) -> Self:
        """An untrained detector of the same options, extractor and seed."""
        return type(self)(extractor=self.extractor, seed=self.seed, **self._options())

    def prepare(self, images: ImageSet, net: PaSTeNet | None = None) -> StudentSite:
        """Read the normal images and compute all that is frozen; the site can then be trained,
        once or round by round: a net given, in place, or a new one. Raises `DataError` when there
        is no image, or too many are bad.
        """
        from fedvad.detectors.student.graphs import normaliser

        paths, own = normals(images), net or self.network()
        return self.site(
            own,
            normaliser(self.extractor),
            paths,
            config=self.extractor.config,
            train=self.train,
            held_out=self.held_out,
            cache_bytes=self.cache_bytes,
            seed=self.seed,
            max_bad=self.max_bad,
            jitter=self.jitter,
            where=f"{self.name} training set",
            **self._site_options(own),
        )

    def fit(self, images: ImageSet) -> Self:
        """See `Detector.fit`."""
        with closing(self.prepare(images)) as site:
            log = site.train()
        return self.with_net(site.net, site.unseen, log)

    def with_net(self, net: PaSTeNet, normals: Sequence[Path], log: TrainLog | None = None) -> Self:
        """Adopt a copy of a net trained here or elsewhere; the scale comes from readable
        `normals`, which it should not have been trained on.
        """
        mapper = self._compiled(net)
        maps = (
            self._smooth(m)
            for _, m, _ in mapped(mapper, normals, self.extractor.config)
            if m is not None
        )
        scores = [image_score(m, self.top) for m in maps]
        self.net_, self.log_, self._mapper = copy.deepcopy(net), log, mapper
        self.scale_ = max(float(np.median(scores)), 1e-12) if scores else 1.0
        return self

    def score(self, images: Sequence[Path], on_image: Callable[[], None] | None = None) -> Scores:
        """See `Detector.score`; maps lie on the grid of the finest level."""
        mapper = self._graph()

        def outcomes() -> Iterator[tuple[int, tuple[float, FloatArray] | str]]:
            for index, map_, error in mapped(mapper, images, self.extractor.config):
                yield index, error or "unknown error" if map_ is None else self._scored(map_)
                if on_image is not None:
                    on_image()

        return collected(outcomes(), images, self._grid)

    def ready(self) -> None:
        """See `Detector.ready`; the graph is compiled with the first image."""
        self._trained()

    def facts(self) -> dict[str, Any]:
        """See `Detector.facts`."""
        return {"scoring": {"smooth": self.smooth, "top": self.top, "combine": self.combine}}

    def score_pixels(self, images: Pictures) -> Iterator[tuple[float, FloatArray]]:
        """See `Detector.score_pixels`."""
        for _, map_ in self._graph()(enumerate(images)):
            yield self._scored(map_)

    def share_engine(self, other: Detector) -> None:
        """Nothing: each student's graph has weights of its own."""

    def map_net(self) -> torch.nn.Module:
        """See `Detector.map_net`."""
        from fedvad.detectors.student.graphs import ScaledMaps

        net, scale = self._trained()
        return ScaledMaps(self._map_net(net), scale, self.smooth)

    def top_count(self, cells: int) -> int:
        """See `Detector.top_count`."""
        return max(1, round(self.top * cells))

    def memory(self) -> Memory:
        """Bytes of what must be kept to score; what teacher and student share counts once."""
        from fedvad.detectors.student.cost import memory

        return memory(self.net_ or self.network())

    def macs(self) -> int:
        """Multiply-accumulates per image at the extractor's image size."""
        import torch

        from fedvad.detectors.student.cost import macs

        side = self.extractor.config.side
        blank = torch.zeros(1, 3, side, side, device=self.extractor.config.device)
        return macs(self.net_ or self.network(), blank)

    def state(self) -> tuple[Arrays, Values]:
        """See `Detector.state`. The teacher is not stored: the extractor brings it."""
        net, scale = self._trained()
        arrays = {
            f"{part}/{n}": array
            for part, module in self._parts(net).items()
            for n, array in parameters_of(module).items()
        }
        arrays |= {f"buffers/{n}": a for n, a in buffers_of(net.student).items()}
        values = {
            "options": {name: plain(value) for name, value in self._options().items()},
            "seed": self.seed,
            "scale": scale,
            "log": None if self.log_ is None else asdict(self.log_),
        }
        return arrays, values

    @classmethod
    def from_state(cls, arrays: Arrays, values: Values, *, extractor: FeatureExtractor) -> Self:
        """See `Detector.from_state`; raises `TypeError` for weights that are not this student's."""
        options = restored(cls, values["options"])
        detector = cls(extractor=extractor, seed=values["seed"], **options)
        net = detector.network()
        try:
            for part, module in cls._parts(net).items():
                load_parameters(module, under(f"{part}/", arrays))
            load_buffers(net.student, under("buffers/", arrays))
        except MismatchError as error:  # to a reader of files it is damage
            raise TypeError(str(error)) from error
        detector.net_, detector.scale_ = net, float(values["scale"])
        detector.log_ = None if values["log"] is None else TrainLog(**values["log"])
        return detector

    @staticmethod
    def _parts(net: PaSTeNet) -> dict[str, torch.nn.Module]:
        """The modules of `parts`, as they are trained."""
        return {"student": net.student}

    def _taps(self) -> tuple[torch.nn.Module, tuple[int, ...], tuple[int, ...]]:
        """The backbone, the layers that it gives, and those to distil."""
        given = self.extractor.config.layers or ()
        return self.extractor.network.network, given, self.layers or given

    def _bootstrap(self) -> int | None:
        return -1

    def _site_options(self, net: PaSTeNet) -> dict[str, Any]:
        """What `site` takes besides, named as here."""
        return {name: getattr(self, name) for name in self.site.options}

    def _options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in option_names(type(self))}

    def _check(self) -> None:
        check_choice("combine", self.combine, Combine)
        check_ranges(self, {"[0, 1)": "held_out jitter", "[0, 1]": "top"})
        if self.smooth < 1 or self.smooth % 2 == 0:
            raise ConfigError(f"smoothing needs an odd number of cells, got {self.smooth}")

    def _map_net(self, net: PaSTeNet) -> MapNet:
        from fedvad.detectors.student.graphs import MapNet, normaliser

        return MapNet(net, normaliser(self.extractor), self.extractor.config.side, self.combine)

    def _trained(self) -> tuple[PaSTeNet, float]:
        """Net and scale; raises `ConfigError` before there are any."""
        if self.net_ is None or self.scale_ is None:
            raise ConfigError(f"{self.name} has no student yet: call fit() or with_net() first")
        return self.net_, self.scale_

    def _graph(self) -> Mapper:
        self._mapper = self._mapper or self._compiled(self._trained()[0])
        return self._mapper

    def _scored(self, map_: FloatArray) -> tuple[float, FloatArray]:
        """Image score and (h, w) map of a raw one."""
        scaled = self._smooth(map_ / np.float32(self._trained()[1]))
        return image_score(scaled, self.top), scaled

    def _compiled(self, net: PaSTeNet) -> Mapper:
        """Raw maps of a net, one image at a time: its score must not depend, in its last bits, on
        the images that happen to be scored with it.
        """
        config, maps = self.extractor.config, self._map_net(net)
        self._grid = maps.grid
        engine = make_engine(maps, image_size=config.side, kind=config.engine, device=config.device)

        def run(images: Iterable[tuple[int, _Pixels]]) -> Iterator[tuple[int, FloatArray]]:
            for index, maps in engine.run((i, pixels[None]) for i, pixels in images):
                yield index, maps[0]

        return run

    def _smooth(self, map_: FloatArray) -> FloatArray:
        return smooth(np.ascontiguousarray(map_, dtype=np.float32), self.smooth)
