"""The predictors of a run's sites, each made when it is first asked for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from fedvad.errors import FedvadError
from fedvad.serving.predictor import Predictor
from fedvad.serving.service.limits import Refusal

log = logging.getLogger(__name__)


class SitePredictors:
    """The served predictor and, where it stands for all sites, those of single sites.

    default: for requests that name no site. names: sites to choose from. load: makes the
    predictor of one of them; it shares the engine of `default`.
    """

    def __init__(
        self,
        default: Predictor,
        names: Sequence[str] = (),
        load: Callable[[str | None], Predictor] | None = None,
    ) -> None:
        self.default = default
        self.names = sorted(names) if load is not None else []
        self._load = load
        self._loaded: dict[str, Predictor] = {}
        self._lock = threading.Lock()

    def check(self, site: str | None) -> None:
        """Raise `Refusal` 422 for a site that this service does not offer."""
        if site is None or site in self.names or site == self.default.site:
            return
        if self.names:
            offered = f"this service offers {', '.join(self.names)}"
        elif self.default.site is not None:
            offered = f"this service offers {self.default.site} only"
        else:
            offered = "this service offers none"
        raise Refusal(422, "unknown_site", f"there is no such site; {offered}")

    def get(self, site: str | None) -> Predictor:
        """The predictor of a site that `check` let pass; may load it, so call it in a thread.

        Raises `Refusal` 503 where it cannot be loaded.
        """
        if site is None or site == self.default.site or self._load is None:
            return self.default
        with self._lock:
            if site not in self._loaded:
                try:
                    loaded = self._load(site)
                except FedvadError as error:
                    log.error("site %s cannot be served: %s", site, error)
                    message = "this site's detector cannot be loaded; the service's log says why"
                    raise Refusal(503, "site_unavailable", message) from error
                loaded.share_engine(self.default)
                self._loaded[site] = loaded
            return self._loaded[site]

    def renew(self) -> None:
        """Load again what is at work, since the run was changed."""
        with self._lock:
            for predictor in (self.default, *self._loaded.values()):
                if self._load is not None:
                    predictor.follow(self._load(predictor.site))

    def close(self) -> None:
        """Close those that were made here; the default is its owner's."""
        with self._lock:
            for predictor in self._loaded.values():
                predictor.close()
            self._loaded.clear()
