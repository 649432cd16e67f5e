"""Nearest rows of one image's patches: ours, faiss and usearch, on one thread.

    python benchmarks/search.py DATA --weights F [--backbone resnet18] [--rows 15000]

Needs faiss-cpu and usearch. Rows are drawn from the training images, patches are those of others.
Prints a Markdown table of processor time, which another process on the machine lengthens, too:
compare lines of one run. "Farther" is by how much the distances exceed the exact ones, in the mean.
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
    print("| search | ms | of the exact | nearest found | farther |\n| --- " + "| ---: " * 4 + "|")
    for name, search in searches.items():
        distances = np.linalg.norm(vectors[search(patches)] - patches, axis=1)
        ratio = distances / np.maximum(nearest, 1e-6)
        print(
            f"| {name} | {1e3 * seconds[name]:.1f} | {seconds[name] / seconds['exact']:.2f} "
            f"| {(ratio < 1.0001).mean():.1%} | {ratio.mean() - 1:.2%} |"
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
    for probes in (2, 8):
        cells = round(len(vectors) ** 0.5 / 2)
        inverted = faiss.index_factory(dim, f"IVF{cells},Flat")
        searches[f"faiss IVF, {probes} cells"] = _of_faiss(inverted, vectors, nprobe=probes)
    graph = faiss.IndexHNSWFlat(dim, 16)
    searches["faiss HNSW"] = _of_faiss(graph, vectors)
    searches["faiss PQ fast scan"] = _of_faiss(faiss.IndexPQFastScan(dim, dim // 4, 4), vectors)
    other = Index(ndim=dim, metric="l2sq", dtype="f16")
    other.add(np.arange(len(vectors)), vectors, threads=1)
    searches["usearch, float16"] = lambda p: other.search(p, 1, threads=1).keys[:, 0].astype(int)
    return searches


def _of_faiss(
    index: faiss.Index, vectors: np.ndarray, nprobe: int | None = None
) -> Callable[[np.ndarray], np.ndarray]:
    index.train(vectors)
    index.add(vectors)
    if nprobe is not None:
        index.nprobe = nprobe
    return lambda patches: index.search(patches, 1)[1][:, 0]


if __name__ == "__main__":
    main()
