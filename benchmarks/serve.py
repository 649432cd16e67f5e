"""The predictor against its bare backbone, and the service under a crowd.

    python benchmarks/serve.py latency IMAGES --weights F [--backbone resnet18]
    python benchmarks/serve.py load RUN IMAGES [--clients 32] [--seconds 60]

Prints Markdown tables. Seconds depend on the machine and its load; the ratios are what counts.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from statistics import quantiles
from time import perf_counter, sleep

import numpy as np
from common import alternate

from fedvad.data.images import read_rgb, resize_rgb
from fedvad.data.inputs import read_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(required=True)
    latency_ = verbs.add_parser("latency")
    latency_.add_argument("images", type=Path)
    latency_.add_argument("--weights", type=Path)
    latency_.add_argument("--backbone", default="resnet18")
    latency_.add_argument("--rows", type=int, default=2000)
    latency_.add_argument("--repeat", type=int, default=25)
    latency_.set_defaults(work=latency)
    load_ = verbs.add_parser("load")
    load_.add_argument("run", type=Path)
    load_.add_argument("images", type=Path)
    load_.add_argument("--clients", type=int, default=32)
    load_.add_argument("--seconds", type=float, default=60)
    load_.set_defaults(work=load)
    arguments = parser.parse_args()
    arguments.work(arguments)


def latency(arguments: argparse.Namespace) -> None:
    from fedvad.detectors.memory.feddymem import PatchCore
    from fedvad.features.config import FeatureConfig
    from fedvad.features.extractor import FeatureExtractor
    from fedvad.memory.bank import MemoryBank
    from fedvad.serving.predictor import Predictor

    config = FeatureConfig(backbone=arguments.backbone, weights=arguments.weights)
    extractor = FeatureExtractor(config)
    paths = read_images([arguments.images])[:32]
    pixels = np.stack([resize_rgb(read_rgb(path), config.image_size) for path in paths])
    patches = extractor.describe(pixels).reshape(-1, extractor.grid[2]).astype(np.float32)
    chosen = np.random.default_rng(0).permutation(len(patches))[: arguments.rows]
    detector = PatchCore(extractor=extractor).with_memory(MemoryBank.of_patches(patches[chosen]))
    data, image = paths[0].read_bytes(), read_rgb(paths[0])
    with Predictor(detector, None) as predictor:
        works = {
            "backbone alone": lambda: extractor.describe(pixels[:1]),
            f"predict, array of {config.image_size} px": lambda: predictor.predict([pixels[0]]),
            f"predict, array of {image.shape[1]} x {image.shape[0]}": lambda: predictor.predict(
                [image]
            ),
            f"predict, {paths[0].suffix} file of it": lambda: predictor.predict([data]),
        }
        seconds = alternate(works, arguments.repeat, warm_up=2)
    bare = seconds["backbone alone"]
    rows, width = len(chosen), patches.shape[1]
    print(f"{arguments.backbone}, {config.image_size} px, memory {rows} x {width}\n")
    print("| what | ms | against the backbone |\n| --- | --- | --- |")
    for name, value in seconds.items():
        print(f"| {name} | {1e3 * value:.1f} | {value / bare:.2f} |")


def load(arguments: argparse.Namespace) -> None:
    import httpx
    import psutil

    contents = [path.read_bytes() for path in read_images([arguments.images])[:32]]
    command = [sys.executable, "-m", "fedvad", "serve", str(arguments.run), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split(" at ")[1].split()[0]
        statuses: Counter[str] = Counter()
        times: list[float] = []
        lock = threading.Lock()
        ends = perf_counter() + arguments.seconds

        def visit(number: int) -> None:
            with httpx.Client(base_url=address, timeout=60) as client:
                while perf_counter() < ends:
                    number += 1
                    files = {"files": ("a.png", contents[number % len(contents)])}
                    start = perf_counter()
                    try:
                        answer = client.post("/v1/predict", params={"heatmap": True}, files=files)
                        status = str(answer.status_code)
                    except httpx.HTTPError as error:
                        status = type(error).__name__
                    with lock:
                        statuses[status] += 1
                        if status == "200":
                            times.append(perf_counter() - start)
                    if status == "429":
                        sleep(float(answer.headers["Retry-After"]))

        memory = psutil.Process(process.pid).memory_info
        rss = [("before", memory().rss)]
        threads = [
            threading.Thread(target=visit, args=(number,)) for number in range(arguments.clients)
        ]
        for thread in threads:
            thread.start()
        for share in (0.25, 0.5, 0.75):
            sleep(max(0.0, ends - (1 - share) * arguments.seconds - perf_counter()))
            rss.append((f"after {share * arguments.seconds:.0f} s", memory().rss))
        for thread in threads:
            thread.join()
        rss.append(("at the end", memory().rss))
        process.terminate()
    cuts = quantiles(times, n=100)
    print(f"{arguments.clients} clients, {arguments.seconds:.0f} s, with heat-maps\n")
    print(f"answers: {dict(statuses)}, {len(times) / arguments.seconds:.1f} images/s")
    print(f"seconds of a success: p50 {cuts[49]:.3f}, p99 {cuts[98]:.3f}, most {max(times):.3f}")
    print("memory: " + ", ".join(f"{when} {size / 1e6:.0f} MB" for when, size in rss))


if __name__ == "__main__":
    main()
