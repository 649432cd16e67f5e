"""Detectors of odd pixels on hyperspectral scenes: AUC1 to AUC5 of each, over seeds.

    python benchmarks/spectral.py --scenes FOLDER --out OUT [--methods rx,crd] [--seeds 0,1,2]

FOLDER holds the scenes as .mat files, and `maskNAME.mat` for a scene `dataNAME.mat` without a
truth of its own. OUT keeps every map, so the same command continues after an interruption. The
tables are of the maps that are there. Defaults throughout, but for Auto-AD's width.
"""

from __future__ import annotations

import argparse
from dataclasses import astuple
from pathlib import Path
from statistics import fmean
from time import process_time

import numpy as np
from common import spread

from fedvad.data.cubes.reading import read_scene
from fedvad.data.cubes.scene import Scene
from fedvad.spectral.areas import Areas, areas
from fedvad.spectral.hypersigma import mixed
from fedvad.spectral.methods import score_cube

# detector, its options, and whether seeds differ
METHODS: dict[str, tuple[str, dict, bool]] = {
    "rx": ("rx", {}, False),
    "lrx": ("lrx", {}, False),
    "crd": ("crd", {}, False),
    "rpca": ("rpca", {}, False),
    "lrasr": ("lrasr", {}, True),
    "auto-ad": ("auto-ad", {"channels": 32}, True),
    "dsformer": ("dsformer", {}, True),
    "network": ("hypersigma", {"score": "margin"}, True),
    "network from scratch": ("hypersigma", {"score": "margin", "pretraining": 0}, True),
    "network of lrx": ("hypersigma", {"score": "margin", "coarse": "lrx"}, True),
}
# rows of two maps that are there: that of the network, and the one that it was trained by
MIXED = {
    "hypersigma": ("network", "rx"),
    "hypersigma from scratch": ("network from scratch", "rx"),
    "hypersigma of lrx": ("network of lrx", "lrx"),
}


def scenes_in(folder: Path) -> list[Scene]:
    """All scenes of a folder with their truths."""
    found = []
    for path in sorted(folder.glob("*.mat")):
        mask = path.with_name(path.name.replace("data", "mask", 1))
        if not path.name.startswith("mask"):
            found.append(read_scene(path, mask=mask if mask != path else None))
    return found


def scored(scene: Scene, name: str, seed: int, out: Path) -> None:
    """Write the map of one method, scene and seed, unless it is there."""
    method, options, seeded = METHODS[name]
    place = out / f"{scene.name}.{name}.{seed}.npz"
    if place.exists() or (seed and not seeded):
        return
    coarse = options.get("coarse")
    if coarse is not None:
        options = options | {"coarse": score_cube(scene.cube, coarse)}
    if seeded:
        options = options | {"seed": seed}
    start = process_time()
    found = score_cube(scene.cube, method, **options)
    seconds = process_time() - start
    part = place.with_suffix(".part.npz")
    np.savez(part, map=found, seconds=seconds)
    part.rename(place)


def figures(scene: Scene, name: str, seed: int, out: Path) -> Areas | None:
    """Of a map that is there, or of two that are mixed."""
    if name in MIXED:
        network, coarse = MIXED[name]
        places = (out / f"{scene.name}.{network}.{seed}.npz", out / f"{scene.name}.{coarse}.0.npz")
        if not all(place.exists() for place in places):
            return None
        found = mixed(*(np.load(place)["map"] for place in places))
    else:
        place = out / f"{scene.name}.{name}.{seed}.npz"
        if not place.exists():
            return None
        found = np.load(place)["map"]
    return areas(found, scene.mask)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", help=", ".join(METHODS))
    parser.add_argument("--seeds", default="0,1,2")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    scenes = scenes_in(given.scenes)
    seeds = [int(seed) for seed in given.seeds.split(",")]
    for name in METHODS if given.methods is None else given.methods.split(","):
        for seed in seeds:
            for scene in scenes:
                scored(scene, name, seed, given.out)
    rows = {}
    for name in [*METHODS, *MIXED]:
        found = [[figures(scene, name, seed, given.out) for seed in seeds] for scene in scenes]
        known = [[one for one in row if one is not None] for row in found]
        if any(known):
            rows[name] = known
    print("| scene | " + " | ".join(rows) + " |\n" + "| --- " * (1 + len(rows)) + "|")
    for number, scene in enumerate(scenes):
        cells = [spread([one.auc1 for one in known[number]]) for known in rows.values()]
        print(f"| {scene.name} | " + " | ".join(cells) + " |")
    print("\nMeans of the scenes, where all are measured.\n")
    print("| method | AUC1 | AUC2 | AUC3 | AUC4 | AUC5 | AP | seconds |")
    print("| --- " * 8 + "|")
    for name, known in rows.items():
        if not all(known):
            continue
        means = [np.mean([_all(one) for one in row], axis=0) for row in known]
        columns = [f"{value:.4f}" for value in np.mean(means, axis=0)]
        seconds = [float(np.load(place)["seconds"]) for place in given.out.glob(f"*.{name}.?.npz")]
        columns.append(f"{fmean(seconds):.1f}" if seconds else "–")
        print(f"| {name} | {' | '.join(columns)} |")


def _all(one: Areas) -> tuple[float, ...]:
    auc1, auc2, auc3, precision = astuple(one)
    return auc1, auc2, auc3, one.auc4, one.auc5 or float("nan"), precision


if __name__ == "__main__":
    main()
