"""Nearest rows of one image's patches: ours, faiss and usearch, on one thread.

    python benchmarks/search.py DATA --weights F [--backbone resnet18] [--rows 15000]

Needs faiss-cpu and usearch. Rows are drawn from the training images, patches are those of others.
Prints a Markdown table of processor time, which another process on the machine lengthens, too:
compare lines of one run. "Farther" is by how much the distances exceed the exact ones, in the mean
over all patches, and over the 32 whose exact distance is largest, which make the image score.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from time import process_time

import faiss
import numpy as np
import torch
from common import alternate, backbone_options, extractor
from usearch.index import Index

from fedvad.data.folders import read_sites
from fedvad.data.images import read_rgb, resize_rgb
from fedvad.memory.neighbours import NeighbourIndex


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    backbone_options(parser)
    parser.add_argument("--rows", type=int, default=15000)
    parser.add_argument("--repeat", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    paths = [item.path for site in read_sites(arguments.data) for item in site.train]
    chosen = np.random.default_rng(0).permutation(len(paths))[:41]
    images = np.stack([resize_rgb(read_rgb(paths[i]), arguments.size) for i in chosen])
    described = extractor(arguments).describe(images).astype(np.float32)
    patches = described[-1].reshape(-1, described.shape[-1])
    rest = described[:-1].reshape(-1, patches.shape[1])
    vectors = rest[np.random.default_rng(1).permutation(len(rest))[: arguments.rows]]

    searches = searches_in(vectors)
    seconds = alternate(
        {name: lambda s=search: s(patches) for name, search in searches.items()},
        arguments.repeat,
        process_time,
        warm_up=1,
    )
    nearest = np.linalg.norm(vectors[searches["exact"](patches)] - patches, axis=1)
    highest = np.argsort(-nearest)[:32]
    print(
        "| search | ms | of the exact | nearest found | farther | top 32 |\n| --- "
        + "| ---: " * 5
        + "|"
    )
    for name, search in searches.items():
        distances = np.linalg.norm(vectors[search(patches)] - patches, axis=1)
        ratio = distances / np.maximum(nearest, 1e-6)
        print(
            f"| {name} | {1e3 * seconds[name]:.1f} | {seconds[name] / seconds['exact']:.2f} "
            f"| {(ratio < 1.0001).mean():.1%} | {ratio.mean() - 1:.2%} "
            f"| {ratio[highest].mean() - 1:.2%} |"
        )


def searches_in(vectors: np.ndarray) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """By name, functions from (n, d) patches to the index (n,) of a near row."""
    dim = vectors.shape[1]
    exact, fast = (NeighbourIndex(vectors, mode=mode) for mode in ("exact", "fast"))
    searches: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "exact": lambda p: exact.query(p)[1][:, 0],
        "ours, usual": lambda p: fast.query(p)[1][:, 0],
        "ours, thorough": lambda p: fast.query(p, thorough=True)[1][:, 0],
    }
    cells = round(len(vectors) ** 0.5 / 2)
    for kind, probes in (
        (f"IVF{cells},Flat", 1),
        (f"IVF{4 * cells},Flat", 2),
        (f"PCA64,IVF{cells},Flat", 2),
        (f"IVF{cells},PQ{dim // 4}x4fs,RFlat", 2),
        ("HNSW16", None),
        ("PCA64,HNSW16", None),
        (f"PQ{dim // 4}x4fs", None),
    ):
        name = f"faiss {kind}" + (f", {probes} cells" if probes else "")
        searches[name] = _of_faiss(faiss.index_factory(dim, kind), vectors, probes)
    other = Index(ndim=dim, metric="l2sq", dtype="f16")
    other.add(np.arange(len(vectors)), vectors, threads=1)
    searches["usearch, float16"] = lambda p: other.search(p, 1, threads=1).keys[:, 0].astype(int)
    return searches


def _of_faiss(
    index: faiss.Index, vectors: np.ndarray, probes: int | None
) -> Callable[[np.ndarray], np.ndarray]:
    index.train(vectors)
    index.add(vectors)
    if probes is not None:
        faiss.ParameterSpace().set_index_parameter(index, "nprobe", probes)
    return lambda patches: index.search(patches, 1)[1][:, 0]


if __name__ == "__main__":
    main()
