"""Which backbones there are: known families, and single models by name."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fedvad.errors import ConfigError
from fedvad.features.families import FAMILIES, own_names

__all__ = ["backbones", "families", "models"]

_DESCRIBED = 20  # models that are looked into: a third of a second each


def backbones(pattern: str | None = None) -> list[dict[str, Any]]:
    """List the families of tested backbones, or the models whose names contain `pattern`.

    Parameters
    ----------
    pattern : str, optional
        Part of a model's name; None lists the families.

    Returns
    -------
    list of dict
        Name, default layers, strides, channels, image sizes and licence of each.

    Raises
    ------
    ConfigError
        When no model has such a name.

    Examples
    --------
    >>> import fedvad
    >>> len(fedvad.backbones()) > 5
    True
    """
    return families() if pattern is None else models(pattern)


def families() -> list[dict[str, Any]]:
    """What is known of each family, as JSON values; imports nothing large."""
    hidden = ("mark", "variants", "module", "brings_weights")
    return [{k: v for k, v in asdict(f).items() if k not in hidden} for f in FAMILIES]


def models(pattern: str) -> list[dict[str, Any]]:
    """The models whose name holds `pattern` (or matches it, where it has * or ?), as JSON values.

    Keys: name; strides and dim at the default layers, layers, sizes, native_size, weights (place on
    the Hugging Face hub), licence. Of more than 20 models only the names are given. Raises
    `ConfigError` for a pattern that no name matches.
    """
    from fedvad.features.compat import import_timm

    timm = import_timm()
    wanted = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
    names = timm.list_models(wanted) or timm.list_pretrained(wanted)
    if not names:
        raise ConfigError(
            f"no timm model's name matches {pattern!r}; `fedvad backbones` without it lists the "
            f"families, among them those that are not timm's: {', '.join(own_names())}"
        )
    if len(names) > _DESCRIBED:
        return [{"name": name} for name in names]
    return [_model(name) for name in names]


def _model(name: str) -> dict[str, Any]:
    from fedvad.features.compat import import_timm
    from fedvad.features.timm_models import describe

    try:
        model = describe(name)
    except ConfigError as error:
        return {"name": name, "error": str(error)}
    source = import_timm().get_pretrained_cfg(name)
    return {
        "name": name,
        "layers": model.taps,
        "strides": [model.strides[tap] for tap in model.taps],
        "dim": sum(model.channels[tap] for tap in model.taps),
        "sizes": model.sizes(),
        "native_size": model.native,
        "weights": source.hf_hub_id,
        "licence": source.license,
    }
