"""The metric loss that pulls a site's normal features to memory, and its guarded training."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from fedvad.detectors.memory.generator import Generator
from fedvad.errors import ConfigError, check_choice
from fedvad.memory.bank import FloatArray
from fedvad.memory.distances import squared_norms

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
LossMode = Literal["hypersphere", "attract_only", "center", "infonce"]


@dataclass(frozen=True)
class MetricLossConfig:
    """Options of the metric loss and its optimiser; defaults follow CFA where it has them.

    loss: `hypersphere` attraction to and repulsion from the nearest anchors, `attract_only` its
        first half, `center` distance to the nearest anchor, `infonce` on cosine similarity.
    attract, repel: numbers of nearest anchors that attract, and of the next ones that repel.
    margin: alpha of the repulsion. identity: weight of ||G(p) - p||^2, beside the mean of squared
        distances: CFA's factor 1 / nu, of 1000, is of both or of neither.
    epochs, batch, learning_rate, weight_decay: of AdamW over the sampled patches.
    min_spread: training stops and is undone when features keep less than this share of their
        standard deviation (collapse guard).
    """

    loss: LossMode = "hypersphere"
    attract: int = 3
    repel: int = 3
    margin: float = 0.1
    identity: float = 0.01
    temperature: float = 0.1
    epochs: int = 1
    batch: int = 1024
    learning_rate: float = 1e-3
    weight_decay: float = 5e-4
    min_spread: float = 0.3

    def __post_init__(self) -> None:
        check_choice("metric loss", self.loss, LossMode)
        if self.attract < 1 or self.repel < 0 or self.epochs < 1 or self.batch < 1:
            raise ConfigError("metric loss needs attract, epochs, batch >= 1 and repel >= 0")


@dataclass(frozen=True)
class TrainingLog:
    """Per epoch the mean loss and the spread (share of standard deviation kept); the verdict.

    radius: rho of the hypersphere at the end, in units of the `usual_distance`.
    """

    loss: list[float]
    spread: list[float]
    collapsed: bool
    radius: float


def metric_loss(
    embedded: torch.Tensor,
    raw: torch.Tensor,
    anchors: torch.Tensor,
    radius: torch.Tensor,
    config: MetricLossConfig,
) -> torch.Tensor:
    """The loss of (b, d) embedded patches with their (b, d) raw ones to (m, d) anchors.

    No gradient flows into the anchors. `radius` is the learnable rho of the hypersphere, in units
    of the descriptors.
    Source: FedDyMem specification, section 3.4 (form and constants of CFA, Lee et al. 2022).
    """
    import torch

    stay = config.identity * (embedded - raw).square().sum(1).mean()
    anchors = anchors.detach()
    if config.loss == "infonce":
        unit = torch.nn.functional.normalize
        similarity = unit(embedded, dim=1) @ unit(anchors, dim=1).T / config.temperature
        return torch.nn.functional.cross_entropy(similarity, similarity.argmax(1)) + stay
    count = min(len(anchors), config.attract + config.repel)
    with torch.no_grad():
        rough = squared_norms(anchors)[None] - 2 * embedded @ anchors.T
        nearest = rough.topk(count, dim=1, largest=False).indices
    squared = (embedded[:, None] - anchors[nearest]).square().sum(2)
    if config.loss == "center":
        return squared[:, 0].mean() + stay
    reach = radius.square()
    loss = (squared[:, : config.attract] - reach).clamp_min(0).mean()
    if config.loss == "hypersphere" and count > config.attract:
        outside = reach - squared[:, config.attract :] - config.margin
        loss = loss + outside.clamp_min(0).mean()
    return loss + stay


def usual_distance(patches: torch.Tensor, anchors: torch.Tensor, config: MetricLossConfig) -> float:
    """Median distance of (n, d) patches to the (m, d) anchors that attract them; 1 where it is 0.

    What rho is measured in: half of the attraction acts at a rho of 1, and the repulsion too. CFA
    starts at 1e-5 whatever the descriptors, which lets no anchor repel before thousands of steps.
    """
    rough = squared_norms(patches)[:, None] + squared_norms(anchors) - 2 * patches @ anchors.T
    nearest = rough.topk(min(len(anchors), config.attract), dim=1, largest=False).values
    return float(nearest.clamp_min(0).median().sqrt()) or 1.0


def train_generator(
    generator: Generator,
    patches: FloatArray,
    anchors: FloatArray,
    config: MetricLossConfig,
    *,
    seed: int,
    radius: float = 1.0,
) -> tuple[Generator, TrainingLog]:
    """Train on (n, d) raw normal patches against frozen (m, d) anchors in memory space.

    Collapse guard: when the mean channel standard deviation of G(p) falls below `min_spread`
    times that of p, or the loss is not finite, the incoming generator is returned and the log
    says `collapsed`. Gradients are clipped to norm 1. radius: rho at the start, in units of the
    `usual_distance`; an earlier training's log has what it became.
    """
    import torch

    weight, bias = generator.parameters()
    rho = torch.tensor(radius, requires_grad=True)
    optimiser = torch.optim.AdamW(
        [weight, bias, rho],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        amsgrad=True,
    )
    data, targets = torch.from_numpy(patches), torch.from_numpy(anchors)
    order = torch.Generator().manual_seed(seed)
    before = float(data.std(0).mean())
    sample = data[torch.randperm(len(data), generator=order)[: config.batch]]
    unit = usual_distance(torch.from_numpy(generator(sample.numpy())), targets, config)
    losses: list[float] = []
    spreads: list[float] = []
    for _ in range(config.epochs):
        total = 0.0
        for rows in torch.split(torch.randperm(len(data), generator=order), config.batch):
            raw = data[rows]
            loss = metric_loss(raw + raw @ weight.T + bias, raw, targets, unit * rho, config)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_([weight, bias, rho], 1.0)
            optimiser.step()
            total += float(loss.detach()) * len(rows)
        with torch.no_grad():
            after = float((data + data @ weight.T + bias).std(0).mean())
        losses.append(total / len(data))
        spreads.append(after / before if before > 0 else 1.0)
        finite = np.isfinite([losses[-1], spreads[-1]]).all()
        if not finite or spreads[-1] < config.min_spread:
            log.warning("generator training undone: spread %.2f of the raw features", spreads[-1])
            return generator, TrainingLog(losses, spreads, collapsed=True, radius=radius)
    trained = Generator(weight.detach().numpy(), bias.detach().numpy())
    return trained, TrainingLog(losses, spreads, collapsed=False, radius=float(rho.detach()))
