"""The exchange of each way of averaging weights: one line each, imported when first asked for."""

from __future__ import annotations

from pkgutil import resolve_name

import numpy as np

from fedvad.detectors.student.parameters import under
from fedvad.errors import PayloadError, join_names
from fedvad.federation.defence.robust import RobustConfig
from fedvad.federation.exchange.terms import Algorithm, WeightConfig
from fedvad.federation.exchange.weights import WeightExchange
from fedvad.federation.payload import Payload

_PLAIN = "fedvad.federation.exchange.weights:WeightExchange"
# fedprox and moon differ at sites only
_AVERAGES: dict[Algorithm, str] = {
    "fedavg": _PLAIN,
    "fedprox": _PLAIN,
    "moon": _PLAIN,
    "scaffold": _PLAIN,
}


def average_class(algorithm: Algorithm) -> type[WeightExchange]:
    """The exchange that averages weights by `algorithm`."""
    found: type[WeightExchange] = resolve_name(_AVERAGES[algorithm])
    return found


def weights_for(
    upload: Payload, algorithm: Algorithm = "fedavg", *, defence: RobustConfig | None = None
) -> WeightExchange:
    """The exchange that averages uploads of the kind of this one, for a server without images.

    Raises `PayloadError` for an upload without weights in float32.
    """
    weights = under("weight/", upload.arrays)
    if not weights or any(array.dtype != np.float32 for array in weights.values()):
        raise PayloadError(
            f"the message must hold weights in float32; it holds {join_names(upload.arrays)}"
        )
    return average_class(algorithm)(
        features=upload.manifest.features,
        initial={name: np.zeros_like(array) for name, array in weights.items()},
        config=WeightConfig(algorithm),
        sites=1,
        start=upload.manifest.generator,
        defence=defence,
    )
