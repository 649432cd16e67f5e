"""Tables of streams: every figure under its own header."""

from __future__ import annotations

from typing import Any

import pytest

from fedvad.report.continual_tables import (
    brief_rows,
    continual_markdown,
    continual_rows,
    forgetting_rows,
    memory_rows,
)


def spread(mean: float, sd: float | None = None) -> dict[str, Any]:
    return {"mean": mean, "sd": sd, "n": 1 if sd is None else 2}


def lost(start: float) -> dict[str, Any]:
    kinds = ("relative", "relative_all", "absolute", "backward")
    return {kind: spread(start + i / 100) for i, kind in enumerate(kinds)}


METHOD = {
    "strategy": "replay",
    "top_features": 1.0,
    "figures": {
        "image_auroc": spread(0.91, 0.012),
        "image_f1": spread(0.82),
        "pixel_auroc": spread(0.93),
        "pixel_f1": spread(0.54),
        "pixel_ap": spread(0.45),
        "aupro": spread(0.76),
        "pooled_image_auroc": spread(0.87),
    },
    "forgetting": {"image_auroc": lost(0.1), "pixel_f1": lost(0.2)},
    "costs": {
        "parameters": 1_500_000, "buffers": 20_000, "peak": 2_250_000, "memory": 2_000_000,
        "learned": 30_000, "optimiser": 0, "macs": 47_000_000,
    },
    "seconds": spread(12.3),
    "by_task": {"a": spread(0.95), "b": spread(0.87)},
}  # fmt: skip
SUMMARY = {
    "stream": "tiny", "title": "", "seeds": [0, 1], "tasks": ["a", "b"], "order": "given",
    "failed": {"other": "no disk"}, "analysis": None,
    "methods": {
        "ours": METHOD,
        "joint": METHOD | {"forgetting": {}, "figures": {"image_auroc": spread(0.99)}},
    },
}  # fmt: skip


def by_header(rows: list[list[str]], name: str = "ours") -> dict[str, str]:
    (row,) = (row for row in rows[1:] if row[0] == name)
    return dict(zip(rows[0], row, strict=True))


def test_quality_bytes_and_forgetting() -> None:
    assert by_header(continual_rows(SUMMARY)) == {
        "method": "ours",
        "image AUROC": "0.910 ± 0.012",
        "image F1 (oracle)": "0.820",
        "pixel AUROC": "0.930",
        "pixel F1 (oracle)": "0.540",
        "pixel PR-AUC": "0.450",
        "AUPRO": "0.760",
        "image AUROC, all tasks under one threshold": "0.870",
        "networks MB": "1.50",
        "memory MB": "2.25",
        "avg forgetting, pixel F1": "0.200",
        "avg forgetting, image AUROC": "0.100",
        "training s": "12",
    }
    joint = by_header(continual_rows(SUMMARY), "joint")
    assert joint["avg forgetting, pixel F1"] == joint["AUPRO"] == "–"


def test_what_fits_a_terminal() -> None:
    assert by_header(brief_rows(SUMMARY)) == {
        "method": "ours",
        "image AUROC": "0.910 ± 0.012",
        "pixel F1": "0.540",
        "networks MB": "1.50",
        "memory MB": "2.25",
        "forgetting": "0.100",
    }


@pytest.mark.parametrize(("figure", "first"), [("image_auroc", 0.1), ("pixel_f1", 0.2)])
def test_every_way_to_say_what_was_lost(figure: str, first: float) -> None:
    rows = forgetting_rows(SUMMARY, figure)
    assert len(rows) == 2  # joint forgets nothing
    assert by_header(rows) == {
        "method": "ours",
        "relative": f"{first:.3f}",
        "relative, counting models from before the task": f"{first + 0.01:.3f}",
        "absolute": f"{first + 0.02:.3f}",
        "backward transfer": f"{first + 0.03:.3f}",
    }
    assert forgetting_rows(SUMMARY, "aupro") == []


def test_every_byte_by_what_it_is_for() -> None:
    assert by_header(memory_rows(SUMMARY)) == {
        "method": "ours",
        "parameters": "1500000 (1.5 MB, 1.43 MiB)",
        "buffers": "20000 (20 kB, 0.02 MiB)",
        "memory of the past, at most": "2250000 (2.25 MB, 2.15 MiB)",
        "of it, codec": "30000 (30 kB, 0.03 MiB)",
        "optimiser, carried": "0",
        "MACs per image": "47 M",
    }


def test_the_page_has_all_tables_and_what_failed() -> None:
    page = continual_markdown(SUMMARY)
    assert page.startswith("# tiny")
    assert "| ours | 0.950 | 0.870 |" in page
    assert "seeds 0, 1; mean" in page
    assert "failed: other: no disk" in page
    for figure in ("image AUROC", "pixel F1 (oracle)"):
        assert f"\n{figure}:\n" in page
