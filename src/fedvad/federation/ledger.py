"""The ledger: who sent how many bytes in which round, how long it took, what was refused."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from fedvad.memory.merge import COVERAGE_WARNING

log = logging.getLogger(__name__)
Phase = Literal["features", "local", "merge", "calibrate", "score"]
# JSON has no NaN and no infinity: files hold null in their place
Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]


class RoundEntry(BaseModel):
    """One round. Bytes are lengths of real serialised messages, by site.

    A participant fetches the current global memory when its round begins; after the last round
    every site fetches the final one, which counts into that round's `bytes_down`. rejected:
    uploads refused as a whole; distrusted: what a robust merge left out of accepted ones; reasons
    by site.
    """

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")

    round: int
    sites: list[str]
    bytes_up: dict[str, int]
    bytes_down: dict[str, int]
    rows_up: dict[str, int]
    memory_rows: int
    coverage: Number
    drift: float | None = None
    rejected: dict[str, str] = Field(default_factory=dict)
    distrusted: dict[str, str] = Field(default_factory=dict)
    generator_spread: dict[str, Number] = Field(default_factory=dict)


class Ledger(BaseModel):
    """Costs of a whole run; grows by rounds and survives a resume.

    images: by site, which images it trains on, as a digest; empty where unknown. options:
    digest of the options that a resumed run must share, empty likewise.
    """

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")

    rounds: list[RoundEntry] = Field(default_factory=list)
    seconds: dict[str, float] = Field(default_factory=dict)
    peak_rss_mb: float = 0.0
    images_computed: int = 0
    images: dict[str, str] = Field(default_factory=dict)
    options: str = ""

    def close_round(self, entry: RoundEntry) -> None:
        """Take in a merged round; what an operator must know of it goes into the log."""
        for site, reason in sorted(entry.rejected.items()):
            log.warning("round %d continues without %s: %s", entry.round, site, reason)
        for site, reason in sorted(entry.distrusted.items()):
            log.warning("round %d: %s is not trusted: %s", entry.round, site, reason)
        if entry.coverage > COVERAGE_WARNING:
            log.warning(
                "round %d: coverage %.1f is above %.0f: some kind of good part is missing from the "
                "global memory, and false alarms will rise; use more rows (--memory-rows) or "
                "--merge concat",
                entry.round, entry.coverage, COVERAGE_WARNING,
            )  # fmt: skip
        self.rounds.append(entry)

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Add the time spent inside to a phase."""
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - start
            self.peak_rss_mb = max(self.peak_rss_mb, peak_rss_mb())

    def continue_from(self, earlier: Ledger) -> None:
        """Add the costs of an interrupted run, and take over its rounds."""
        self.rounds[:] = earlier.rounds
        for name, seconds in earlier.seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self.peak_rss_mb = max(self.peak_rss_mb, earlier.peak_rss_mb)
        self.images_computed += earlier.images_computed

    def forget(self, site: str) -> None:
        """Remove a site, by name, from the record of rounds and images."""
        self.images.pop(site, None)
        for entry in self.rounds:
            entry.sites = [name for name in entry.sites if name != site]
            by_site: tuple[dict[str, Any], ...] = (
                entry.bytes_up, entry.bytes_down, entry.rows_up, entry.rejected,
                entry.distrusted, entry.generator_spread,
            )  # fmt: skip
            for values in by_site:
                values.pop(site, None)

    @property
    def bytes_up_per_site_round(self) -> float:
        """Mean bytes of an upload."""
        sent = [b for entry in self.rounds for b in entry.bytes_up.values()]
        return sum(sent) / len(sent) if sent else 0.0

    @property
    def bytes_down_per_site_round(self) -> float:
        """Mean bytes of a download."""
        received = [b for entry in self.rounds for b in entry.bytes_down.values()]
        return sum(received) / len(received) if received else 0.0

    def summary(self) -> dict[str, object]:
        """The figures that tables and `--json` show."""
        known = {p: round(self.seconds.get(p, 0.0), 3) for p in Phase.__args__}  # type: ignore[attr-defined]
        return {
            "rounds": len(self.rounds),
            "bytes_up_per_site_round": round(self.bytes_up_per_site_round),
            "bytes_up_max": max(
                (b for entry in self.rounds for b in entry.bytes_up.values()), default=0
            ),
            "bytes_down_per_site_round": round(self.bytes_down_per_site_round),
            "memory_rows": self.rounds[-1].memory_rows if self.rounds else 0,
            "coverage": self.rounds[-1].coverage if self.rounds else None,
            "rejected": sum(len(entry.rejected) for entry in self.rounds),
            "distrusted": sum(len(entry.distrusted) for entry in self.rounds),
            "images_computed": self.images_computed,
            "seconds": {**known, "total": round(sum(self.seconds.values()), 3)},
            "peak_rss_mb": round(self.peak_rss_mb, 1),
        }


def peak_rss_mb() -> float:
    """Largest resident memory of this process so far, in MiB."""
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return float(psutil.Process().memory_info().peak_wset) / 2**20
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    except OSError:  # not Linux
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def reset_peak_rss() -> bool:
    """Let `peak_rss_mb` count from now on; False where the system cannot (all but Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
