"""Reverse distillation against AAND, for the same number of optimiser steps.

    python benchmarks/aand.py --data SET [SET …] --weights F [--backbone resnet18]
        [--layers 1,2,3] [--size 256] [--seeds 0,1,2] [--steps 900] [--amplify-steps 300]
        [--pairs 200] [--textures FOLDER] [--foreground otsu] [--width 1] [--batch 16]
        [--rate 0.005] [--smooth 3] [--top 0.02] [--device cuda] [--out FOLDER]
        [--only "rd;aand"] [--sheet FILE.png]

Every set (in MVTec's layout) is trained and tested alone. All variants take `--steps` steps in
all; AAND spends `--amplify-steps` of them on stage I. The last step counts: no image chooses one,
and no label of a test image is read but to compute the metrics. Prints a Markdown table per set,
mean ± standard deviation over the seeds. With --out each finished run is a file there, and a
second call with the same options computes only what is missing. --sheet: heat-maps of the
test images by the last variant that is computed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from common import machine

from fedvad.data.folders import Site, read_set
from fedvad.data.synthesis import SynthesisConfig
from fedvad.detectors.registry import create
from fedvad.detectors.reverse import adam
from fedvad.distill.amplify_options import AmplifyConfig
from fedvad.distill.training import TrainConfig
from fedvad.evaluation.sites import evaluate_site
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor
from fedvad.pipeline.outputs import panels
from fedvad.report.contact_sheet import contact_sheet

# The first of each method is its shipped default. Amplification and the loss of hard examples are
# crossed, so that each can be told from the other.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "rd": ("rd", {}),
    "rd, hard examples": ("rd", {"loss": "hard+global"}),
    "aand": ("aand", {}),
    "aand, no hard examples": ("aand", {"loss": "global"}),
    "aand, additive residual": ("aand", {"amplify": {"residual": "additive"}}),
    "aand, margin mul": ("aand", {"amplify": {"margin": "mul"}}),
    "aand, no forcing": ("aand", {"amplify": {"gate_forcing": False}}),
    "aand, keep normals": ("aand", {"amplify": {"keep_weight": 1.0}}),
    "aand, textures alone": ("aand", {"kinds": {"texture": 1.0}}),
}
METRICS = ("image_auroc", "pixel_auroc", "aupro")


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    names = arguments.only.split(";") if arguments.only else list(VARIANTS)
    seeds = [int(s) for s in arguments.seeds.split(",")]
    print(
        f"{machine()}. {arguments.backbone}, layers {arguments.layers}, {arguments.size} pixels, "
        f"{arguments.steps} steps ({arguments.amplify_steps} of them of stage I), seeds {seeds}."
    )
    for data in map(read_set, arguments.data):
        found = {n: [measured(n, seed, data, arguments) for seed in seeds] for n in names}
        print(f"\n{data.name}\n\n{table(found)}", flush=True)


def measured(name: str, seed: int, data: Site, arguments: argparse.Namespace) -> dict[str, Any]:
    """The result of one run, from its file if it is there."""
    told = {k: str(v) for k, v in vars(arguments).items() if k not in _NO_MATTER}
    key = json.dumps([name, seed, data.name, told], sort_keys=True)
    file = None
    if arguments.out is not None:
        file = arguments.out / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
        if file.exists():
            return dict(json.loads(file.read_text())["result"])
    result = run(name, seed, data, arguments)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"of": key, "result": result}))
    return result


def run(name: str, seed: int, data: Site, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train one variant on a set's normal images and test it."""
    kind, options = VARIANTS[name]
    detector = create(
        kind,
        extractor=extractor(arguments),
        seed=seed,
        width=arguments.width,
        smooth=arguments.smooth,
        top=arguments.top,
        **chosen(kind, options, arguments),
    )
    start = perf_counter()
    detector.fit(data.train)
    seconds = perf_counter() - start
    result = evaluate_site(
        data.name, data.test, detector.score(data.test.paths), None, image_size=arguments.size
    )
    if arguments.sheet is not None:
        contact_sheet(
            panels([result]),
            arguments.sheet,
            title=f"{data.name}, {name}",
            image_size=arguments.size,
        )
    stages = {"loss": getattr(detector, "log_", None)}
    stages["amplify"] = getattr(detector, "amplified_", None)
    ends = {
        stage: f"{log.loss[0]:.3f} to {log.loss[-1]:.3f}"
        for stage, log in stages.items()
        if log is not None
    }
    auroc = f"{result.image_auroc:.4f}" if result.image_auroc is not None else "–"
    print(
        f"{data.name}, {name}, seed {seed}: {auroc} after {seconds:.0f} s, {ends}",
        file=sys.stderr,
        flush=True,
    )
    return {metric: getattr(result, metric) for metric in METRICS} | {"seconds": seconds, **ends}


def chosen(kind: str, options: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """A variant's options with those of the command line."""
    if kind == "rd":
        return options | {"train": train_config(arguments, arguments.steps)}
    options = dict(options)
    drawing: dict[str, Any] = {"area": (0.01, 0.15), "foreground": arguments.foreground}
    if "kinds" in options:
        drawing["kinds"] = options.pop("kinds")
    amplify = AmplifyConfig(pairs=arguments.pairs, **options.pop("amplify", {}))
    return options | {
        "amplify": amplify,
        "stage1": train_config(arguments, arguments.amplify_steps),
        "train": train_config(arguments, arguments.steps - arguments.amplify_steps),
        "synthesis": SynthesisConfig(**drawing),
        "textures": arguments.textures,
    }


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """All variants of one set as a Markdown table."""
    heads = ["variant", "image AUROC", "pixel AUROC", "AUPRO", "training"]
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for name, runs in found.items():
        cells = [name, *(spread([r[metric] for r in runs]) for metric in METRICS)]
        cells.append(f"{np.median([r['seconds'] for r in runs]):.0f} s")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: Sequence[float | None]) -> str:
    """Mean ± standard deviation; a dash where there are no masks, or one class alone."""
    known = [v for v in values if v is not None]
    if len(known) < len(values):
        return "–"
    return f"{np.mean(known):.4f} ± {np.std(known):.4f}"


def extractor(arguments: argparse.Namespace) -> FeatureExtractor:
    return FeatureExtractor(
        FeatureConfig(
            backbone=arguments.backbone,
            weights=arguments.weights,
            layers=tuple(map(int, arguments.layers.split(","))),
            image_size=arguments.size,
            engine="openvino" if arguments.device == "cpu" else "torch",
            device=arguments.device,
        )
    )


def train_config(arguments: argparse.Namespace, steps: int) -> TrainConfig:
    return replace(adam(steps), batch=arguments.batch, learning_rate=arguments.rate)


_NO_MATTER = ("out", "only", "seeds", "data", "threads", "sheet")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="SET")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--layers", default="1,2,3")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=900, help="optimiser steps of both stages")
    parser.add_argument("--amplify-steps", type=int, default=300, help="those of stage I")
    parser.add_argument("--pairs", type=int, default=200, help="synthetic images of stage I")
    parser.add_argument("--textures", type=Path, help="folder of pictures to fill defects with")
    parser.add_argument("--foreground", default="none", choices=("none", "otsu"))
    parser.add_argument("--width", type=float, default=1.0, help="of the student")
    parser.add_argument("--batch", type=int, default=16, help="images per step")
    parser.add_argument("--rate", type=float, default=0.005)
    parser.add_argument("--smooth", type=int, default=1, help="cells")
    parser.add_argument("--top", type=float, default=0.0, help="share of the cells; 0: maximum")
    parser.add_argument("--out", type=Path, help="folder of finished runs")
    parser.add_argument("--only", help="names of variants, separated by semicolons")
    parser.add_argument("--sheet", type=Path, help="PNG of heat-maps to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
