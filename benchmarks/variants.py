"""Variants of the federated memory side by side on real sites: the evidence behind the defaults.

    python benchmarks/variants.py DATA --weights F --out DIR [--seeds 0,1,2] [--only "a;b"]

Every variant is trained and scored by `fedvad train`'s own code; features come from one cache. A
finished cell (variant, seed) is kept in DIR/cells and not run again. Ends with a Markdown table of
mean and standard deviation over seeds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from common import spread

import fedvad

# What each row changes. The first is the shipped default; nothing here was chosen per category.
VARIANTS: dict[str, dict[str, Any]] = {
    "feddymem (default)": {"compare": "local,pooled"},
    "1 round": {"rounds": 1, "calibration": "none"},
    "3 rounds": {"rounds": 3, "calibration": "none"},
    "kmeans to 2000": {"merge": "kmeans", "memory_rows": 2000, "calibration": "none"},
    "kcenter to 2000": {"merge": "kcenter", "memory_rows": 2000, "calibration": "none"},
    "pull 0.5": {"pull": 0.5, "calibration": "none"},
    "pull 1 (cell means)": {"pull": 1.0, "calibration": "none"},
    "cluster": {"method": "feddymem-cluster", "merge": "concat", "calibration": "none"},
    "position": {"method": "feddymem-position", "merge": "concat", "calibration": "none"},
    "untrained, ema": {"update": "ema", "merge": "concat", "calibration": "none"},
    "trained, ema": {"method": "feddymem-trained", "merge": "concat", "calibration": "none"},
    "trained, kmeans 2000": {"method": "feddymem-trained", "calibration": "none"},
    "trained, gentle": {
        "method": "feddymem-trained",
        "merge": "concat",
        "learning_rate": 1e-5,
        "calibration": "none",
    },
    "trained, center loss": {
        "method": "feddymem-trained",
        "merge": "concat",
        "loss": "center",
        "calibration": "none",
    },
    "map cfa": {"map": "cfa", "calibration": "none"},
    "map patchcore": {"map": "patchcore", "calibration": "none"},
    "map spread": {"map": "spread", "calibration": "none"},
    "spread on kmeans 2000": {
        "map": "spread",
        "merge": "kmeans",
        "memory_rows": 2000,
        "calibration": "none",
    },
    "maximum, no smoothing": {"smooth": 1, "top": 0.0, "calibration": "none"},
    "top 1 %": {"top": 0.01, "calibration": "none"},
    "exact search": {"search": "exact", "calibration": "none"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--split")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", help="names of variants, separated by semicolons")
    arguments = parser.parse_args()
    names = arguments.only.split(";") if arguments.only else list(VARIANTS)
    seeds = [int(s) for s in arguments.seeds.split(",")]
    for name in names:
        for seed in seeds:
            cell = _cell(arguments.out, name, seed)
            if not cell.is_file():
                run_cell(arguments, name, seed, cell)
    print(table(arguments.out, names, seeds))


def run_cell(arguments: argparse.Namespace, name: str, seed: int, cell: Path) -> None:
    options = {"backbone": arguments.backbone, "seed": seed} | VARIANTS[name]
    if arguments.weights:
        options["weights"] = arguments.weights
    if arguments.split:
        options["split"] = arguments.split
    folder = Path(tempfile.mkdtemp(prefix="fedvad-bench-"))
    try:
        results = fedvad.train(arguments.data, folder / "run", **options)
    finally:
        shutil.rmtree(folder)
    cell.parent.mkdir(parents=True, exist_ok=True)
    cell.write_text(json.dumps(results, indent=1))
    print(name, seed, results["image_auroc"]["mean"], results["image_auroc"]["worst"], flush=True)


def table(out: Path, names: list[str], seeds: list[int]) -> str:
    lines = [
        "| variant | image AUROC mean | worst site | pixel AUROC | AUPRO | rows | MB up |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in names:
        runs = [json.loads(_cell(out, name, s).read_text()) for s in seeds]
        lines.append(_row(name, runs))
        for other in runs[0]["compare"]:
            rows = [run["compare"][other] for run in runs]
            lines.append(_row(f"– {other}", rows))
    return "\n".join(lines)


def _row(name: str, runs: list[dict[str, Any]]) -> str:
    ledger = runs[0].get("ledger")
    cells = [
        name,
        spread([r["image_auroc"]["mean"] for r in runs]),
        spread([r["image_auroc"]["worst"] for r in runs]),
        spread([r["pixel_auroc"]["mean"] for r in runs]),
        spread([r["aupro"]["mean"] for r in runs]),
        str(ledger["memory_rows"]) if ledger else "",
        f"{ledger['bytes_up_max'] / 1e6:.2f}" if ledger else "",
    ]
    return "| " + " | ".join(cells) + " |"


def _cell(out: Path, name: str, seed: int) -> Path:
    safe = "".join(c if c.isalnum() else "-" for c in name)
    return out / "cells" / f"{safe}-{seed}.json"


if __name__ == "__main__":
    main()
