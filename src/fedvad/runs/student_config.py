"""Options of students, alone or averaged over sites, for `train`'s and `bench`'s files."""

from __future__ import annotations

from functools import partial
from typing import Any

from fedvad.data.checked import Given
from fedvad.detectors.student.loss import Combine
from fedvad.detectors.student.schedule import Decay
from fedvad.federation.exchange.scope import Fusion, WSAConfig
from fedvad.federation.exchange.terms import Algorithm, WeightConfig
from fedvad.runs.option import option

_student = partial(option, group="Students")


class StudentOptions(Given):
    """The table `[student]`: how sites' weights become one set, what a student is, how it trains.

    None takes the method's own value.
    """

    algorithm: Algorithm = _student(
        WeightConfig.algorithm,
        "How the sites' weights become one set. scaffold goes with methods that train with SGD.",
    )
    prox: float = _student(
        WeightConfig.prox, "Weight of fedprox's pull towards the shared weights.", ge=0
    )
    moon: float = _student(WeightConfig.moon, "Weight of moon's contrastive loss.", ge=0)
    wsa: float = _student(0.0, "Strength of weight-scope alignment. 0 is none.", ge=0)
    fusion: Fusion = _student(
        "average",
        "How weight-scope alignment combines the sites' scopes (mean and deviation of the weights "
        "of a layer).",
    )
    steps: int | None = _student(
        None,
        "Training steps of a site in each round. 50 is a short try.",
        default_text="the images of the method's paper, spread over the rounds",
        ge=1,
        example=50,
    )

    bootstrap: int | None = _student(
        None,
        "Last layer that the student shares with the backbone.",
        default_text="the one before the first of layers",
        only="paste",
        example=5,
    )
    combine: Combine | None = _student(
        None,
        "How the anomaly maps of the layers become one.",
        default_text="the method's own",
        example="sum",
    )
    batch: int | None = _student(
        None,
        "Images in a training step; pairs of images for dmdd.",
        default_text="8; 16 for rd, aand, daad and amsl; 4 for dmdd",
        ge=1,
        example=8,
    )
    learning_rate: float | None = _student(
        None,
        "Learning rate of a site's optimiser.",
        default_text="0.4; 0.1 for dcam; 0.005 for rd, aand, dmdd, daad and amsl",
        gt=0,
        example=0.4,
    )
    decay: Decay = _student(
        "cosine",
        "How the learning rate falls over all rounds: cosine to a hundredth along half a cosine, "
        "none not at all.",
    )
    warmup: int = _student(
        5, "Training steps of each round over which the learning rate rises.", unit="steps", ge=0
    )
    jitter: float = _student(
        0.0,
        "Also learn each image under three other lights: brightness and contrast scaled by up to "
        "this share. Not for dmdd.",
        ge=0,
        lt=1,
    )
    mixed_precision: bool = _student(
        False,
        "Compute convolutions in bfloat16: faster on a processor with AMX, not for mobile nets.",
    )
    amplify_rounds: int = _student(
        2,
        "Rounds in which the sites advance their common teacher, before the rounds of the student.",
        ge=1,
        only="aand",
    )
    cache_bytes: int = _student(
        256 << 20,
        "Memory for what is computed only once. More goes to a temporary file.",
        unit="bytes",
        ge=1,
    )
    options: dict[str, Any] = _student(
        dict,
        "Further options of the method's detector. On the command line KEY=VALUE, which may be "
        "repeated, as width=0.5 for rd or dual.pairs=100 for dmdd; in a file a table.",
        example={"width": 0.5},
    )

    def terms(self) -> WeightConfig:
        """As the exchange takes them."""
        wsa = WSAConfig(strength=self.wsa, fusion=self.fusion) if self.wsa else None
        return WeightConfig(algorithm=self.algorithm, prox=self.prox, moon=self.moon, wsa=wsa)
