"""Which methods may travel between sites and servers on machines of their own."""

from __future__ import annotations

from fedvad.errors import ConfigError
from fedvad.runs.config import TrainConfig
from fedvad.runs.families import method_class
from fedvad.runs.method import Method


def remote(config: TrainConfig, *, allow_weights: bool, consent: str) -> type[Method]:
    """The class of a configuration's method, by which sites and a server work by file or over a
    network.

    allow_weights: whether weights of a network trained on images may travel. consent: how to say
    so, for the error.

    Raises `ConfigError` for a method that does not travel, or may not.
    """
    kind = method_class(config.method)
    if kind.sends_weights and not allow_weights:
        raise ConfigError(
            f"{config.method} trains a student at each site and sends its weights, which were "
            "made from the site's images and can hold more of them than a memory's rows do.\n"
            f"If that may leave the site, say so: {consent}"
        )
    kind.check_remote(config)
    return kind
