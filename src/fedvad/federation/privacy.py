"""What noise amounts to: by opacus' accountant for rows, exactly for sums."""

from __future__ import annotations

import logging
import math
import warnings

from fedvad.errors import ConfigError

NEIGHBOURS = "data sets of a site that differ in one image, whose descriptors are set to zero"
ONE_REPLACED = "data sets of all sites that differ in one image, in whose place is another"


def epsilon(noise: float, releases: int, delta: float) -> float:
    """Epsilon at `delta` of a number of uploads of one site, each with that noise multiplier.

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


def gaussian_delta(epsilon: float, mu: float) -> float:
    """The least delta at `epsilon` of Gaussian noise whose deviation is sensitivity / `mu`.

    Releases compose: of several, mu is the root of the sum of their squares, exactly.

    Examples
    --------
    >>> from fedvad.federation.privacy import gaussian_delta
    >>> round(gaussian_delta(1.0, 1.0), 4)
    0.1269

    Source: Balle and Wang 2018, theorem 8; Dong, Roth and Su 2022, corollary 2.13.
    """
    from scipy.special import log_ndtr, ndtr

    if mu == 0:
        return 0.0
    second = math.exp(epsilon + float(log_ndtr(-mu / 2 - epsilon / mu)))
    return max(0.0, float(ndtr(mu / 2 - epsilon / mu)) - second)


def gaussian_mu(epsilon: float, delta: float) -> float:
    """The largest mu, see `gaussian_delta`, that keeps (epsilon, delta); to 12 digits, from below.

    Raises `ConfigError` for impossible values.

    Examples
    --------
    >>> from fedvad.federation.privacy import gaussian_mu
    >>> round(1 / gaussian_mu(1.0, 1e-5), 3)  # noise for one release of sensitivity 1
    3.731
    """
    if not 0 < epsilon < math.inf or not 0 < delta < 1:
        raise ConfigError(f"epsilon > 0 and delta in (0, 1) are needed, got {epsilon}, {delta}")
    low, high = 0.0, 1.0
    while gaussian_delta(epsilon, high) <= delta:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(epsilon, middle) <= delta else (low, middle)
    return low
