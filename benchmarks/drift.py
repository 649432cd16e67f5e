"""Does a watch name what changed? Normal images of real sets, changed on purpose.

    python benchmarks/drift.py DATA [--weights resnet18.safetensors] [--seeds 0 1 2]

DATA holds `mtd`, `hazelnut` and `screw`. Of each set's normal training images, drawn apart by seed,
two fifths train a run, one fifth shows how normal images look, and two fifths are watched: a
quarter of them as they are, the rest changed. Without weights nothing is trained, and only pictures
are compared. Prints a table of Markdown.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

import fedvad
from fedvad.data.images import read_rgb
from fedvad.evaluation.change import ChangeWatch, normals_from
from fedvad.serving.predictor import Predictor

Pixels = npt.NDArray[np.uint8]
SETS = {"mtd": "mtd/exposure1", "hazelnut": "hazelnut", "screw": "screw"}
OTHER = {"mtd": "hazelnut", "hazelnut": "mtd", "screw": "mtd"}
AFTER = 4  # one in so many of the watched images comes before the change


def _blurred(pixels: Pixels) -> Pixels:
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(1.5)))


def _moved(pixels: Pixels) -> Pixels:
    by = pixels.shape[1] // 10
    return np.pad(pixels, ((0, 0), (by, 0), (0, 0)), mode="edge")[:, : pixels.shape[1]]


CHANGES: dict[str, Callable[[Pixels], Pixels]] = {
    "none": lambda pixels: pixels,
    "a quarter darker": lambda pixels: (pixels * 0.75).astype(np.uint8),
    "blurred, 1.5 pixels": _blurred,
    "moved by a tenth": _moved,
    "redder by a tenth": lambda pixels: np.clip(pixels * [1.1, 1, 0.9], 0, 255).astype(np.uint8),
    "another product": lambda pixels: pixels,
}


def _images(data: Path, name: str) -> list[Path]:
    return sorted((data / SETS[name] / "train/good").iterdir())[:200]


@contextmanager
def _predictor(paths: list[Path], weights: Path, seed: int) -> Iterator[Predictor]:
    """Of a run on some images."""
    with tempfile.TemporaryDirectory() as folder:
        for part, some in (("train", paths), ("test", paths[:3])):
            good = Path(folder, "data/line", part, "good")
            good.mkdir(parents=True)
            for path in some:
                (good / path.name).symlink_to(path)
        fedvad.train(
            Path(folder, "data"), Path(folder, "run"), backbone="resnet18", weights=weights,
            image_size=256, seed=seed, cache=Path(folder, "cache"),
        )  # fmt: skip
        with Predictor.load(Path(folder, "run"), site="line") as predictor:
            yield predictor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    given = parser.parse_args()
    print("| set | change | named (watches) | images after the change, median | share stopped |")
    print("| --- | --- | --- | --- | --- |")
    for name in given.sets:
        named: dict[str, Counter[str]] = {change: Counter() for change in CHANGES}
        delays: dict[str, list[int]] = {change: [] for change in CHANGES}
        shares: dict[str, list[float]] = {change: [] for change in CHANGES}
        for seed in given.seeds:
            paths = _images(given.data, name)
            paths = [paths[i] for i in np.random.default_rng(seed).permutation(len(paths))]
            a, b = 2 * len(paths) // 5, 3 * len(paths) // 5
            normals = normals_from(read_rgb(path) for path in paths[a:b])
            watched = [read_rgb(path) for path in paths[b:]]
            other = [read_rgb(path) for path in _images(given.data, OTHER[name])[: len(watched)]]
            first = len(watched) // AFTER
            with ExitStack() as stack:
                predictor = limit = None
                if given.weights is not None:
                    training = _predictor(paths[:a], given.weights, seed)
                    predictor = stack.enter_context(training)
                    limit = predictor.threshold
                for change, alter in CHANGES.items():
                    after = other if change == "another product" else watched[first:]
                    stream = watched[:first] + [alter(x) for x in after[: len(watched) - first]]
                    scores = [1.0] * len(stream)
                    if predictor is not None:
                        scores = [float(one.score or 0) for one in predictor.predict(stream)]
                    watch = ChangeWatch(
                        limit.value if limit else None, limit.scores if limit else (), normals
                    )
                    when = None
                    for i, (score, pixels) in enumerate(zip(scores, stream, strict=True)):
                        watch.add(score, watch.look(pixels), when=str(i))
                        if when is None and watch.change()["changed"]:
                            when = i - first + 1
                            delays[change].append(when)
                    named[change][" + ".join(sorted(watch.change()["changed"])) or "nothing"] += 1
                    if limit:
                        shares[change].append(
                            float(np.mean(np.array(scores[first:]) > limit.value))
                        )
        for change, found in named.items():
            reported = ", ".join(f"{kinds} ({count})" for kinds, count in found.most_common())
            delay = f"{np.median(delays[change]):.0f}" if delays[change] else "–"
            share = f"{np.mean(shares[change]):.2f}" if shares[change] else "–"
            print(f"| {name} | {change} | {reported} | {delay} | {share} |", flush=True)


if __name__ == "__main__":
    main()
