"""Each part of DFMSD on and off: how near a small student comes to its last teacher.

    python benchmarks/dfmsd.py --weights resnet18=F --weights resnet50=F --out FOLDER
        [--data FOLDER …] [--steps 300] [--images 128] [--size 128] [--seeds 0] [--only "all on;…"]

Every variant is the shipped recipe `dfmsd` with one part changed, at `--steps` for each stage and
the same drawn images, plus `--data`. Prints per variant the share of the last teacher's variance
that the student explains on 64 fresh drawn images, and the mean cosine, per level. A finished
variant is a folder in --out; a second call computes only what is missing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from common import spread

from fedvad.experiments.distill.recipe import Recipe, load_recipe
from fedvad.experiments.distill.run import distill_backbone

VARIANTS: dict[str, dict[str, Any]] = {
    "all on": {},
    "no masked term": {"w_m": 0.0},
    "no masks": {"rho_s": 0.0, "rho_c": 0.0},
    "no spatial masks": {"rho_s": 0.0},
    "no channel masks": {"rho_c": 0.0},
    "random masks": {"mode": "random", "enhance": 0.0},
    "no enhancement": {"enhance": 0.0},
    "no generators": {"generator": False},
    "no semantic term": {"w_sem": 0.0},
    "one stage": {},
    "plain term alone": {"w_m": 0.0, "w_sem": 0.0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", action="append", default=[])
    parser.add_argument("--data", type=Path, action="append", default=[])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--only", default=";".join(VARIANTS))
    given = parser.parse_args()
    weights = {name: Path(path) for name, path in (w.split("=", 1) for w in given.weights)}
    seeds = [int(seed) for seed in given.seeds.split(",")]
    print("| variant | explained, by level | cosine, by level |\n| --- | --- | --- |")
    for name in given.only.split(";"):
        found = []
        for seed in seeds:
            out = given.out / f"{name} {seed}"
            if not (out / "distill.json").exists():
                distill_backbone(
                    recipe_of(name, seed, given), out, data=given.data, weights=weights
                )
            found.append(json.loads((out / "distill.json").read_text())["stages"][-1]["levels"])
        explained, cosine = (
            ", ".join(spread([levels[i][key] for levels in found]) for i in range(len(found[0])))
            for key in ("explained", "cosine")
        )
        print(f"| {name} | {explained} | {cosine} |", flush=True)


def recipe_of(name: str, seed: int, given: argparse.Namespace) -> Recipe:
    values = load_recipe("dfmsd").model_dump()
    short = {"steps": given.steps, "warmup": given.steps // 20}
    stages = [stage | VARIANTS[name] | short for stage in values["stages"]]
    if name == "one stage":  # of as many steps in all
        stages = [stages[-1] | {"steps": given.steps * len(stages)}]
    images = values["images"] | {"limit": given.images}
    return Recipe.model_validate(
        values
        | {"seed": seed, "image_size": given.size, "stages": stages, "images": images}
        | {"checkpoint": 10 * given.steps}
    )


if __name__ == "__main__":
    main()
