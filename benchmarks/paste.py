"""What PaSTe saves against STFPM on one backbone, both measured in turn in one run.

    python benchmarks/paste.py --weights F [--backbone mcunet_in3] [--layers 6,10,14] [--size 176]
        [--batch 8] [--repeats 5]

Prints a Markdown table of ratios. Seconds depend on the machine and its load, the ratios less so. A
step of training is measured as fedvad does it, with everything frozen computed before, and as the
papers do it, with trunk and teacher in it. What both detect: `benchmarks/distillation.py`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import alternate
from peak import peak_memory

from fedvad.detectors.student.branches import PaSTeNet
from fedvad.detectors.student.detector import StudentDetector
from fedvad.detectors.student.graphs import MapNet, Normalise
from fedvad.detectors.student.loss import cosine_loss
from fedvad.detectors.student.stfpm import STFPM, PaSTe
from fedvad.features.config import FeatureConfig
from fedvad.features.engine import make_engine
from fedvad.features.extractor import FeatureExtractor

NAMES = ("stfpm", "paste")


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    extractor = FeatureExtractor(
        FeatureConfig(
            backbone=arguments.backbone,
            weights=arguments.weights,
            layers=tuple(map(int, arguments.layers.split(","))),
            image_size=arguments.size,
        )
    )
    detectors: dict[str, StudentDetector] = {
        "stfpm": STFPM(extractor=extractor),
        "paste": PaSTe(extractor=extractor, bootstrap=arguments.bootstrap),
    }
    if arguments.peak:
        print(peak_of_a_step(detectors[arguments.peak].network(), arguments))
        return
    rows = costs(detectors, arguments)
    print("| | STFPM | PaSTe | PaSTe / STFPM |\n| --- | --- | --- | --- |")
    for name, (stfpm, paste), scale, unit in rows:
        print(
            f"| {name} | {stfpm * scale:.4g} {unit} | {paste * scale:.4g} {unit} "
            f"| {paste / stfpm:.3f} |",
            flush=True,
        )


Pair = tuple[float, float]


def costs(
    detectors: dict[str, StudentDetector], arguments: argparse.Namespace
) -> list[tuple[str, Pair, float, str]]:
    size, batch = arguments.size, arguments.batch
    nets = {name: d.network() for name, d in detectors.items()}
    network = detectors["stfpm"].extractor.network
    normalise = Normalise(network.get_buffer("scale"), network.get_buffer("shift"))
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    x = normalise(torch.from_numpy(pixels))
    seconds: dict[str, dict[str, float]] = {}
    for kind in ("torch", "openvino"):
        engines = {
            n: make_engine(MapNet(net, normalise, size, "product"), image_size=size, kind=kind)
            for n, net in nets.items()
        }
        seconds[f"map of one image, {kind}"] = alternate(
            {n: lambda e=e: list(e.run([(0, pixels[:1])])) for n, e in engines.items()},
            5 * arguments.repeats,
            warm_up=1,
        )
    cached = {n: inputs_and_targets(net, x) for n, net in nets.items()}
    seconds[f"training step of {batch}, frozen parts computed before"] = alternate(
        {n: lambda n=n: step(nets[n], *cached[n]) for n in nets},
        arguments.repeats,
        warm_up=1,
    )
    seconds[f"training step of {batch}, frozen parts in the step"] = alternate(
        {n: lambda n=n: step(nets[n], *inputs_and_targets(nets[n], x)) for n in nets},
        arguments.repeats,
        warm_up=1,
    )
    rows: list[tuple[str, Pair, float, str]] = [
        ("parameters", pair(lambda n: detectors[n].memory().parameters), 1e-6, "MB"),
        ("parameters", pair(lambda n: detectors[n].memory().parameters), 2**-20, "MiB"),
        ("buffers", pair(lambda n: detectors[n].memory().buffers), 1e-6, "MB"),
        (f"multiply-accumulates at {size}", pair(lambda n: detectors[n].macs()), 1e-6, "M"),
    ]
    rows += [(name, (s["stfpm"], s["paste"]), 1e3, "ms") for name, s in seconds.items()]
    kept = pair(lambda n: saved_bytes(nets[n], *cached[n]))
    rows.append((f"kept for the gradient, batch of {batch}", kept, 1e-6, "MB"))
    rows.append((f"peak memory of a step of {batch}", pair(lambda n: peak(n)), 1e-6, "MB"))
    return rows


def inputs_and_targets(net: PaSTeNet, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    with torch.no_grad():
        z = net.shared(x)
        return z, net.teacher(z)


def step(net: PaSTeNet, z: torch.Tensor, targets: list[torch.Tensor]) -> None:
    """Forward, backward and an update of nothing: times do not depend on the values."""
    net.train()
    net.zero_grad(set_to_none=True)
    cosine_loss(targets, net.student(z)).backward()  # type: ignore[no-untyped-call]


def saved_bytes(net: PaSTeNet, z: torch.Tensor, targets: list[torch.Tensor]) -> float:
    """Bytes of the activations that autograd keeps for one backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    net.train()
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        cosine_loss(targets, net.student(z))
    return sum(size for pointer, size in kept.items() if pointer not in own)


def peak(name: str) -> float:
    """In a process of its own, because an allocator keeps what it got."""
    command = [sys.executable, *sys.argv, "--peak", name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_of_a_step(net: PaSTeNet, arguments: argparse.Namespace) -> int:
    x = torch.zeros(arguments.batch, 3, arguments.size, arguments.size)
    step(net, *inputs_and_targets(net, x[:1]))  # set-up of the library is not the step's
    with peak_memory() as found:
        step(net, *inputs_and_targets(net, x))
    return found.bytes


def pair(value: Callable[[str], float]) -> Pair:
    return value("stfpm"), value("paste")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="mcunet_in3")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--layers", default="6,10,14")
    parser.add_argument("--bootstrap", type=int)
    parser.add_argument("--size", type=int, default=176)
    parser.add_argument("--batch", type=int, default=8, help="images per step")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peak", choices=NAMES, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
