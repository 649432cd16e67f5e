"""Tables of a page on what a run cost: bytes by site and round, seconds by phase, memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fedvad.federation.ledger import Ledger
from fedvad.report.bench_tables import size
from fedvad.report.tables import UNKNOWN

Rows = list[list[str]]

_MOST_CELLS = 2000
_PHASES = {
    "features": "features (backbone)",
    "local": "rounds: at the sites",
    "merge": "rounds: at the server",
    "calibrate": "thresholds",
    "score": "scoring and comparisons",
}


def rounds_table(ledger: Ledger) -> Rows:
    """One row per round, the header first."""
    spread = any(entry.generator_spread for entry in ledger.rounds)
    some = not is_covered(ledger)
    head = ["round", "sites", "rows sent", "rows in memory", *["coverage"] * some, "drift",
            "bytes sent", "bytes received", "refused"]  # fmt: skip
    rows = [head + ["generator spread"] * spread]
    for entry in ledger.rounds:
        row = [
            str(entry.round),
            str(len(entry.sites)),
            f"{sum(entry.rows_up.values()):,}",
            f"{entry.memory_rows:,}",
            *[_figure(entry.coverage)] * some,
            _figure(entry.drift),
            size(sum(entry.bytes_up.values())),
            size(sum(entry.bytes_down.values())),
            str(len(entry.rejected)),
        ]
        if spread:
            row.append(", ".join(f"{s} {v:.3g}" for s, v in entry.generator_spread.items()))
        rows.append(row)
    return rows


def is_covered(ledger: Ledger) -> bool:
    """Whether every uploaded row is in the memory as it was sent, so that coverage says nothing."""
    return all(entry.coverage == 0 for entry in ledger.rounds)


def site_bytes_table(ledger: Ledger) -> Rows:
    """One row per site with its sums over the rounds, then all sites; the header first."""
    rows = [["site", "uploads", "rows sent", "bytes sent", "bytes received"]]
    sums = [0, 0, 0, 0]
    for site in _sites(ledger):
        figures = [
            sum(site in e.bytes_up for e in ledger.rounds),
            sum(e.rows_up.get(site, 0) for e in ledger.rounds),
            sum(e.bytes_up.get(site, 0) for e in ledger.rounds),
            sum(e.bytes_down.get(site, 0) for e in ledger.rounds),
        ]
        sums = [a + b for a, b in zip(sums, figures, strict=True)]
        rows.append([site, *_traffic(figures)])
    if len(rows) > 2:
        rows.append(["all sites", *_traffic(sums)])
    return rows


def traffic_table(ledger: Ledger) -> Rows | None:
    """Bytes up / down of each site in each round; None where that would be over 2000 cells."""
    sites = _sites(ledger)
    if len(sites) * len(ledger.rounds) > _MOST_CELLS:
        return None
    rows = [["site", *(f"round {e.round}: sent / received" for e in ledger.rounds)]]
    for site in sites:
        cells = []
        for entry in ledger.rounds:
            up, down = entry.bytes_up.get(site), entry.bytes_down.get(site)
            known = [UNKNOWN if n is None else size(n) for n in (up, down)]
            cells.append(UNKNOWN if up is None and down is None else " / ".join(known))
        rows.append([site, *cells])
    return rows


def phases_table(ledger: Ledger) -> list[tuple[str, str, float]]:
    """(phase, seconds in words, share of the total 0 ... 1), in the order of the work."""
    total = sum(ledger.seconds.values())
    known = [*(p for p in _PHASES if p in ledger.seconds),
             *(p for p in ledger.seconds if p not in _PHASES)]  # fmt: skip
    return [
        (
            _PHASES.get(phase, phase),
            f"{ledger.seconds[phase]:,.1f} s",
            ledger.seconds[phase] / total if total > 0 else 0.0,
        )
        for phase in known
    ]


def config_table(config: Mapping[str, object]) -> list[tuple[str, str]]:
    """(option, value) of the whole configuration; of files only the name."""
    return [(key, _plain(value)) for key, value in config.items()]


def _plain(value: object) -> str:
    if value is None:
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {_plain(v)}" for k, v in value.items()) or UNKNOWN
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_plain, value)) or UNKNOWN
    return str(value).replace("\\", "/").rpartition("/")[2]  # folders are nobody's business


def _traffic(figures: Sequence[int]) -> list[str]:
    uploads, rows, up, down = figures
    return [str(uploads), f"{rows:,}", size(up), size(down)]


def _sites(ledger: Ledger) -> list[str]:
    return list(
        dict.fromkeys(s for e in ledger.rounds for s in (*e.sites, *e.bytes_up, *e.bytes_down))
    )


def _figure(value: float | None) -> str:
    return UNKNOWN if value is None or not math.isfinite(value) else f"{value:.3g}"
