"""What the noise of a site's uploads amounts to, by opacus' accountant."""

from __future__ import annotations

import logging
import warnings

from fedvad.errors import ConfigError

__all__ = ["NEIGHBOURS", "epsilon"]

NEIGHBOURS = "data sets of a site that differ in one image, whose descriptors are set to zero"


def epsilon(noise: float, releases: int, delta: float) -> float:
    """Epsilon at `delta` of so many uploads of one site, each with that noise multiplier.

    Uploads of the same images compose: every round counts. Sites hold different images, so the
    guarantee of one does not depend on the others (parallel composition), and the server counts
    as the attacker. Infinite without noise. Raises `ConfigError` for impossible values and where
    opacus is not installed. Source: Renyi accounting (Mironov 2017), opacus.
    """
    if noise < 0 or releases < 0 or not 0 < delta < 1:
        raise ConfigError(
            f"noise and releases >= 0 and delta in (0, 1) are needed, got {noise}, {releases}, "
            f"{delta}"
        )
    if releases == 0:
        return 0.0
    if noise == 0:
        return float("inf")
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        from opacus.accountants import RDPAccountant
        from opacus.accountants.analysis import rdp
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the accountant needs opacus ({error}): pip install 'fedvad[privacy]'"
        ) from error
    finally:  # importing it sets up logging for the whole process
        root.handlers[:] = handlers
        root.setLevel(level)
    orders = RDPAccountant.DEFAULT_ALPHAS
    spent = rdp.compute_rdp(q=1.0, noise_multiplier=noise, steps=releases, orders=orders)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "a larger alpha might be tighter": still an upper bound
        found, _ = rdp.get_privacy_spent(orders=orders, rdp=spent, delta=delta)
    return float(found)
