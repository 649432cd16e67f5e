"""Distillation with and without defects to learn from, beside memories: STFPM to DMDD.

    python benchmarks/distillation.py --data SET [SET …] --pool FOLDER --weights F
        [--backbone resnet18] [--layers 1,2,3] [--size 256] [--seeds 0,1,2] [--steps 900]
        [--amplify-steps 300] [--pairs 200] [--textures FOLDER] [--foreground otsu] [--width 1]
        [--batch 16] [--rate 0.005] [--smooth 3] [--top 0.02] [--mixed-precision] [--device cuda]
        [--out FOLDER] [--only "rd;aand"] [--sheet FILE.png]

Every set (in MVTec's layout) is trained and tested alone; --pool makes one set of a folder of
sites, of all their training images and all their tests. All variants have the same backbone,
layers, preprocessing, smoothing and image score. Students take `--steps` optimiser steps in all;
AAND spends `--amplify-steps` of them on its first stage. A step of DMDD has `--dual-batch` pairs;
STFPM, PaSTe and DCAM have SGD and batches of 8, and keep their best weights by held-out normal
images; of the others the last step counts. No label of a test image is read but to compute the
metrics. One training of DMDD gives a row for each source of scores, and a table of the recall at
the centre and the edge of defects for each of its maps.

Prints Markdown, a table per set, mean ± standard deviation over the seeds, and how the held-out
loss fell; `by site` is the mean of the image AUROCs of the sites of a pool; minutes are processor
time of the training. With --out each finished run is a file there, and a second call with the same
options computes only what is missing. --sheet: heat-maps of the test images by the last variant
that is computed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from common import backbone_options, extractor, machine, spread

from fedvad.data.folders import ImageSet, Site, read_set, read_sites
from fedvad.data.synthesis import SynthesisConfig
from fedvad.detectors.base import Detector
from fedvad.detectors.memory.site import FedDyMemConfig
from fedvad.detectors.registry import create, detector_class
from fedvad.detectors.scoring import ScoringConfig
from fedvad.detectors.student.aand.options import AmplifyConfig
from fedvad.detectors.student.dmdd.detector import DMDD
from fedvad.detectors.student.dmdd.options import DualConfig
from fedvad.detectors.student.rd.detector import adam
from fedvad.detectors.student.training import TrainConfig
from fedvad.evaluation.metrics import image_auroc
from fedvad.evaluation.outline import outline_recall
from fedvad.evaluation.sites import evaluate_site
from fedvad.evaluation.truth import read_truth
from fedvad.report.contact_sheet import contact_sheet
from fedvad.verbs.outputs import panels

# The first of each method is its shipped default. Amplification and the loss of hard examples are
# crossed, so that their effects can be separated.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "patchcore": ("patchcore", {}),
    "feddymem": ("feddymem", {}),
    "stfpm": ("stfpm", {}),
    "paste": ("paste", {}),
    "dcam": ("dcam", {}),
    "rd": ("rd", {}),
    "rd, hard examples": ("rd", {"loss": "hard+global"}),
    "aand": ("aand", {}),
    "aand, no hard examples": ("aand", {"loss": "global"}),
    "aand, additive residual": ("aand", {"amplify": {"residual": "additive"}}),
    "aand, margin mul": ("aand", {"amplify": {"margin": "mul"}}),
    "aand, no forcing": ("aand", {"amplify": {"gate_forcing": False}}),
    "aand, keep normals": ("aand", {"amplify": {"keep_weight": 1.0}}),
    "aand, textures alone": ("aand", {"kinds": {"texture": 1.0}}),
    "dmdd": ("dmdd", {}),
    "dmdd, encoder": ("dmdd", {"dual": {"student": "encoder"}}),
    "dmdd, paired reference": ("dmdd", {"dual": {"aim_reference": "paired"}}),
    "dmdd, margin": ("dmdd", {"dual": {"aim": "margin"}}),
    "dmdd, whole maps": ("dmdd", {"dual": {"flatten": True}}),
    "dmdd, head of products": ("dmdd", {"dual": {"head_input": "product"}}),
    "dmdd, joint": ("dmdd", {"dual": {"joint": True}}),
    "dmdd, no normal term": ("dmdd", {"dual": {"self_weight": 0.0}}),
    "dmdd, textures alone": ("dmdd", {"kinds": {"texture": 1.0}}),
}
DEFAULT = ("patchcore", "feddymem", "stfpm", "rd", "rd, hard examples", "aand", "dmdd")
METRICS = ("image_auroc", "by_site", "pixel_auroc", "aupro")
MAPS = ("normality", "abnormality", "summed", "head")
PARTS = ("centre", "ring", "whole")


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    names = arguments.only.split(";") if arguments.only else list(DEFAULT)
    if unknown := [n for n in names if n not in VARIANTS]:
        raise SystemExit(f"unknown variants {unknown}; there are: {'; '.join(VARIANTS)}")
    seeds = [int(s) for s in arguments.seeds.split(",")]
    print(
        f"{machine()}. {arguments.backbone}, layers {arguments.layers}, {arguments.size} pixels, "
        f"{arguments.steps} steps ({arguments.amplify_steps} of AAND's first stage), seeds {seeds}."
    )
    for data in [*map(read_set, arguments.data), *map(pooled, arguments.pool)]:
        found = {n: [measured(n, seed, data, arguments) for seed in seeds] for n in names}
        print(f"\n{data.name}\n\n{table(found)}", flush=True)
        print("\nHeld-out loss by step, first seed:\n\n" + curves(found), flush=True)
        if outlines := {n: runs for n, runs in found.items() if "outline" in runs[0]}:
            print(f"\n{data.name}, recall of defects\n\n{outline_table(outlines)}", flush=True)


def pooled(folder: Path) -> Site:
    """All sites of a folder as one set."""
    sites = read_sites(folder)
    train, test = (
        ImageSet(tuple(item for site in sites for item in getattr(site, part)))
        for part in ("train", "test")
    )
    return Site(f"pooled {folder.name}", train, test)


def measured(name: str, seed: int, data: Site, arguments: argparse.Namespace) -> dict[str, Any]:
    """The result of one run, from its file if it is there."""
    reported = {k: str(v) for k, v in vars(arguments).items() if k not in _NO_MATTER}
    files = "\n".join(map(str, (*data.train.paths, *data.test.paths)))
    digest = hashlib.sha256(files.encode(errors="replace")).hexdigest()
    key = json.dumps([name, repr(VARIANTS[name]), seed, digest, reported], sort_keys=True)
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
    """Train one variant on a set's normal images and test it.

    rows: metrics by the source of scores, "" for a detector's own.
    """
    kind, options = VARIANTS[name]
    detector = create(
        kind, extractor=extractor(arguments), seed=seed, **chosen(kind, options, arguments)
    )
    start = process_time()
    detector.fit(data.train)
    seconds = process_time() - start
    result: dict[str, Any] = {"rows": {"": tested(detector, name, data, arguments)}}
    if isinstance(detector, DMDD):
        for source in ("maps", "mix"):
            other = detector.scoring_by(source)
            result["rows"][source] = tested(other, f"{name}, {source}", data, arguments)
        if data.test.has_masks:
            result["outline"] = outlines(detector, data, arguments)
    logs = [getattr(detector, n, None) for n in ("amplified_", "log_")]
    result["steps"] = sum(log.steps for log in logs if log is not None)
    result["seconds"] = seconds
    result["curves"] = [[log.at, log.validation] for log in logs if log is not None]
    auroc = result["rows"][""]["image_auroc"]
    losses = [f"{log.loss[0]:.3f} to {log.loss[-1]:.3f}" for log in logs if log is not None]
    print(
        f"{data.name}, {name}, seed {seed}: image AUROC {auroc} after {seconds:.0f} s, {losses}",
        file=sys.stderr,
        flush=True,
    )
    return result


def tested(
    detector: Detector, name: str, data: Site, arguments: argparse.Namespace
) -> dict[str, float | None]:
    """Metrics of a trained detector on the test images."""
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
    labels, sites = result.test.labels, [path.parts[-4] for path in result.test.paths]
    own = {site: np.array([s == site for s in sites]) for site in sorted(set(sites))}
    of_sites = [image_auroc(result.scores[rows], labels[rows]) for rows in own.values()]
    known = [value for value in of_sites if value is not None]
    return {metric: getattr(result, metric, None) for metric in METRICS} | {
        "by_site": float(np.mean(known)) if known else None
    }


def outlines(detector: DMDD, data: Site, arguments: argparse.Namespace) -> dict[str, Any]:
    """Recall of centre and ring of each of the detector's maps, which are not smoothed."""
    maps = detector.maps(data.test.paths)
    kept = data.test.subset(maps.kept)
    found = {
        name: outline_recall(
            read_truth(kept, arguments.size).pairs(getattr(maps, name)), width=arguments.ring
        )
        for name in MAPS
    }
    return {name: None if recall is None else asdict(recall) for name, recall in found.items()}


def chosen(kind: str, options: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """A variant's options with those of the command line."""
    options = dict(options)
    if kind in ("patchcore", "feddymem"):
        scoring = ScoringConfig(smooth=arguments.smooth, top=arguments.top)
        if kind == "feddymem":
            return options | {"config": FedDyMemConfig(scoring=scoring)}
        return options | {"scoring": scoring}
    options |= {"smooth": arguments.smooth, "top": arguments.top}
    if kind in ("stfpm", "paste", "dcam"):
        train = replace(
            detector_class(kind).train,
            steps=arguments.steps,
            batch=8,
            validate_every=every(arguments),
            mixed_precision=arguments.mixed_precision,
        )
        return options | {"train": train}
    if kind == "rd":
        return options | {
            "width": arguments.width,
            "train": train_config(arguments, arguments.steps),
        }
    drawing: dict[str, Any] = {"area": (0.01, 0.15), "foreground": arguments.foreground}
    if "kinds" in options:
        drawing["kinds"] = options.pop("kinds")
    options |= {"synthesis": SynthesisConfig(**drawing), "textures": arguments.textures}
    if kind == "dmdd":
        train = train_config(arguments, arguments.steps)
        own = {"pairs": arguments.pairs, "width": arguments.dual_width}
        return options | {
            "dual": DualConfig(**own | options.pop("dual", {})),
            "train": replace(train, batch=arguments.dual_batch),
        }
    return options | {
        "width": arguments.width,
        "amplify": AmplifyConfig(pairs=arguments.pairs, **options.pop("amplify", {})),
        "stage1": train_config(arguments, arguments.amplify_steps),
        "train": train_config(arguments, arguments.steps - arguments.amplify_steps),
    }


def table(found: Mapping[str, list[dict[str, Any]]]) -> str:
    """All variants of one set as a Markdown table."""
    heads = ["variant", "image AUROC", "by site", "pixel AUROC", "AUPRO", "steps", "minutes"]
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for name, runs in found.items():
        for source in runs[0]["rows"]:
            rows = [r["rows"][source] for r in runs]
            cells = [", ".join(filter(None, (name, source)))]
            cells += [spread([row[metric] for row in rows]) for metric in METRICS]
            steps = np.mean([r["steps"] for r in runs])
            cells.append(f"{steps:.0f}" if steps else "–")
            cells.append(f"{np.median([r['seconds'] for r in runs]) / 60:.1f}")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def curves(found: Mapping[str, list[dict[str, Any]]]) -> str:
    """How the held-out loss of each variant's last stage fell, a line each."""
    last = {name: runs[0]["curves"][-1] for name, runs in found.items() if runs[0]["curves"]}
    return "\n".join(
        f"- {name}: " + ", ".join(f"{step}: {value:.3f}" for step, value in zip(*own, strict=True))
        for name, own in last.items()
    )


def outline_table(found: Mapping[str, list[dict[str, Any]]]) -> str:
    """Recall of centre, ring and whole of each map, where 5 % of the normal pixels are above."""
    heads = ["variant", "map", *PARTS]
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for name, runs in found.items():
        for which in MAPS:
            recalls = [r["outline"][which] or dict.fromkeys(PARTS) for r in runs]
            cells = [name, which, *(spread([r[part] for r in recalls], 3) for part in PARTS)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def every(arguments: argparse.Namespace) -> int:
    """Steps from one measurement of the held-out loss to the next."""
    return max(25, arguments.steps // 8)


def train_config(arguments: argparse.Namespace, steps: int) -> TrainConfig:
    return replace(
        adam(steps),
        batch=arguments.batch,
        learning_rate=arguments.rate,
        validate_every=every(arguments),
        mixed_precision=arguments.mixed_precision,
    )


_NO_MATTER = ("out", "only", "seeds", "data", "pool", "threads", "sheet")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", default=[], metavar="SET")
    parser.add_argument("--pool", type=Path, nargs="+", default=[], metavar="FOLDER")
    backbone_options(parser)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=900, help="optimiser steps of all stages")
    parser.add_argument("--amplify-steps", type=int, default=300, help="those of AAND's stage I")
    parser.add_argument("--pairs", type=int, default=200, help="synthetic images")
    parser.add_argument("--textures", type=Path, help="folder of pictures to fill defects with")
    parser.add_argument("--foreground", default="none", choices=("none", "otsu"))
    parser.add_argument("--width", type=float, default=1.0, help="of the students of rd and aand")
    parser.add_argument("--batch", type=int, default=16, help="images per step of rd and aand")
    parser.add_argument("--dual-width", type=float, default=0.5, help="of dmdd's student")
    parser.add_argument("--dual-batch", type=int, default=4, help="pairs per step of dmdd")
    parser.add_argument("--rate", type=float, default=0.005, help="of Adam")
    parser.add_argument("--mixed-precision", action="store_true", help="convolutions in bfloat16")
    parser.add_argument("--smooth", type=int, default=1, help="cells")
    parser.add_argument("--top", type=float, default=0.0, help="share of the cells; 0: maximum")
    parser.add_argument("--ring", type=int, default=4, help="pixels: how wide an edge is")
    parser.add_argument("--out", type=Path, help="folder of finished runs")
    parser.add_argument("--only", help="names of variants, separated by semicolons")
    parser.add_argument("--sheet", type=Path, help="PNG of heat-maps to write")
    arguments = parser.parse_args()
    if not arguments.data + arguments.pool:
        parser.error("give sets by --data, or folders of sites by --pool")
    return arguments


if __name__ == "__main__":
    main()
