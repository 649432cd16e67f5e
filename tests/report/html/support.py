"""A small run made up for the tests of its page, and a reader of pages."""

from __future__ import annotations

from html.parser import HTMLParser
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from fedvad.evaluation.metrics import image_auroc
from fedvad.evaluation.results import Results
from fedvad.federation.ledger import Ledger, RoundEntry
from fedvad.report.html.page import Contents
from fedvad.report.html.record import Gallery, Picture, Scores, SiteScores

SITES = ("alder", "birch")


def webp(seed: int = 0, size: int = 24) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP")
    return buffer.getvalue()


def metric(values: dict[str, float | None]) -> dict[str, Any]:
    known = [v for v in values.values() if v is not None]
    return {
        "mean": float(np.mean(known)) if known else None,
        "worst": min(known, default=None),
        "pooled": None,
        "sites": values,
    }


def site_scores(seed: int, *, normal: int = 10, defects: int = 8) -> SiteScores:
    rng = np.random.default_rng(seed)
    labels = [0] * normal + [1] * defects
    scores = [float(rng.normal(0.6 + 0.8 * label, 0.3)) for label in labels]
    return SiteScores(
        files=[f"{i:03}.png" for i in range(len(labels))],
        defects=["crack" if label else "good" for label in labels],
        labels=labels,
        scores=scores,
        threshold=1.0,
        compared={"local": [float(s + rng.normal(0, 0.5)) for s in scores]},
    )


def ledger(sites: tuple[str, ...] = SITES, rounds: int = 2) -> Ledger:
    return Ledger(
        rounds=[
            RoundEntry(
                round=r,
                sites=list(sites),
                bytes_up=dict.fromkeys(sites, 50_000),
                bytes_down=dict.fromkeys(sites, 0 if r == 1 else 200_000),
                rows_up=dict.fromkeys(sites, 300),
                memory_rows=600 * r,
                coverage=0.5,
                drift=None if r == 1 else 0.2,
            )
            for r in range(1, rounds + 1)
        ],
        seconds={"features": 3.0, "local": 1.0, "score": 6.0},
        peak_rss_mb=321.0,
        images_computed=77,
    )


def results(scores: Scores) -> dict[str, Any]:
    """JSON form of results that fit the scores, with the comparison `local`."""
    ours, alone, gains, rates = {}, {}, {}, {}
    for name, site in scores.sites.items():
        labels = np.array(site.labels)
        values = np.array(site.scores)
        ours[name] = image_auroc(values, labels)
        alone[name] = image_auroc(np.array(site.compared["local"]), labels)
        if ours[name] is not None and alone[name] is not None:
            gain = ours[name] - alone[name]
            gains[name] = {"gain": gain, "low": gain - 0.01, "high": gain + 0.01}
        limit = site.threshold
        rates[name] = {
            "threshold": limit,
            "n": 24,
            "method": "conformal",
            "fpr": float((values[labels == 0] > limit).mean()) if (labels == 0).any() else None,
            "recall": float((values[labels == 1] > limit).mean()) if labels.any() else None,
            "counts": {
                "good": int((labels == 0).sum()),
                "stopped": int((values[labels == 0] > limit).sum()),
                "defects": int((labels == 1).sum()),
                "caught": int((values[labels == 1] > limit).sum()),
            },
        }
    fpr = [r["fpr"] for r in rates.values() if r["fpr"] is not None]
    recall = [r["recall"] for r in rates.values() if r["recall"] is not None]
    change = [g["gain"] for g in gains.values()]
    mean = float(np.mean(change)) if change else None
    return {
        "image_auroc": metric(ours),
        "threshold": {
            "target_fpr": 0.01,
            "mean_fpr": float(np.mean(fpr)) if fpr else None,
            "mean_recall": float(np.mean(recall)) if recall else None,
            "sites": rates,
        },
        "compare": {"local": {"image_auroc": metric(alone)}},
        "gain": {
            "local": {
                "mean": {"gain": mean, "low": mean - 0.01, "high": mean + 0.01},
                "sites": gains,
            }
            if change
            else None
        },
        "training_images": dict.fromkeys(scores.sites, 12),
        "unreadable": [],
        "method": "feddymem",
        "backbone": "filterbank",
    }


def gallery(scores: Scores) -> Gallery:
    pictures = [
        Picture(
            site=name,
            file=file,
            defect=defect,
            label=label,
            score=score,
            threshold=site.threshold,
            outlined=bool(label),
            photo="0000-photo.webp",
            heat="0000-heat.webp",
            width=24,
            height=24,
        )
        for name, site in scores.sites.items()
        for file, defect, label, score in zip(
            site.files, site.defects, site.labels, site.scores, strict=True
        )
    ]
    return Gallery(tested=len(pictures), pictures=pictures)


def contents(sites: tuple[str, ...] = SITES, **changes: Any) -> Contents:
    scores = Scores(sites={name: site_scores(i) for i, name in enumerate(sites)})
    values: dict[str, Any] = {
        "name": "run",
        "results": Results.parse(results(scores), "results"),
        "ledger": ledger(sites),
        "config": {
            "precision": "float16",
            "weights": "/home/someone/w.safetensors",
            "student": {"options": {"dual": {"textures": "C:\\someone\\textures"}}},
        },
        "scores": scores,
        "gallery": gallery(scores),
        "picture": lambda name: webp(),
        "dim": 6,
    }
    return Contents(**(values | changes))


class Reader(HTMLParser):
    """The elements of a page, as (tag, attributes), and its text by element."""

    def __init__(self, page: bytes | str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self._inside: list[str] = []
        self.feed(page.decode() if isinstance(page, bytes) else page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._inside:
            while self._inside.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if self._inside and self._inside[-1] in ("script", "style"):
            return
        self.text += data
        if self._inside and self._inside[-1] in ("th", "td") and self.rows:
            self.rows[-1][-1] += data

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        """Attributes of the elements of a tag that have the given ones."""
        return [
            found
            for name, found in self.elements
            if name == tag and all(found.get(k) == v for k, v in attributes.items())
        ]

    def row(self, first: str) -> list[str]:
        return next(row for row in self.rows if row and row[0] == first)
