from __future__ import annotations

import numpy as np
import pytest
import torch

from fedvad.detectors.memory.generator import Generator
from fedvad.detectors.memory.metric_loss import MetricLossConfig, metric_loss, train_generator
from fedvad.detectors.memory.site import Anchors, FedDyMemConfig
from fedvad.errors import ConfigError
from fedvad.memory.coreset import k_center
from tests.helpers import fake_site, make_bank

# squared distances of the one patch at 0 to the anchors: 1, 4, 9, 16
ANCHORS = [[3.0, 0.0], [0.0, 1.0], [-4.0, 0.0], [0.0, -2.0]]


def loss_of(config: MetricLossConfig, *, radius: float = 0.0, raw=((0.0, 0.0),)) -> float:
    embedded = torch.zeros(1, 2)
    value = metric_loss(
        embedded, torch.tensor(raw), torch.tensor(ANCHORS), torch.tensor(radius), config
    )
    return float(value)


def test_center_is_the_squared_distance_to_the_nearest_anchor():
    assert loss_of(MetricLossConfig(loss="center")) == pytest.approx(1)


def test_attraction_is_the_mean_excess_of_the_nearest_over_the_radius():
    config = MetricLossConfig(loss="attract_only", attract=3, nu=0.5)
    assert loss_of(config) == pytest.approx((1 + 4 + 9) / 3 / 0.5)
    # of 1, 4, 9 only 4 - 2.25 and 9 - 2.25 remain
    assert loss_of(config, radius=1.5) == pytest.approx((1.75 + 6.75) / 3 / 0.5)


def test_repulsion_acts_on_the_next_anchors_that_lie_inside():
    config = MetricLossConfig(attract=2, repel=2, margin=0.5, nu=0.1)
    assert loss_of(config) == pytest.approx((1 + 4) / 2 / 0.1)
    # radius^2 = 12.25: nothing attracts, 12.25 - 9 - 0.5 repels, 12.25 - 16 - 0.5 does not
    assert loss_of(config, radius=3.5) == pytest.approx(2.75 / 2 / 0.1)


def test_fewer_anchors_than_asked_for_all_attract():
    many = MetricLossConfig(attract=9, repel=3, nu=1.0)
    assert loss_of(many) == pytest.approx((1 + 4 + 9 + 16) / 4)
    three = MetricLossConfig(attract=3, repel=3, nu=1.0, margin=0.0)
    assert loss_of(three, radius=5) == pytest.approx(25 - 16)


def test_infonce_by_hand():
    patch, anchors = torch.tensor([[2.0, 0.0]]), torch.tensor([[5.0, 0], [0, 1], [-1, 0]])
    config = MetricLossConfig(loss="infonce", temperature=0.5)
    value = float(metric_loss(patch, patch, anchors, torch.tensor(0.0), config))
    # cosines 1, 0, -1 over 0.5; the first is the nearest
    assert value == pytest.approx(np.log(np.exp([2, 0, -2]).sum()) - 2, rel=1e-5)


@pytest.mark.parametrize("loss", ["hypersphere", "attract_only", "center", "infonce"])
def test_identity_term_is_the_squared_way_from_the_raw_patch(loss):
    with_term = loss_of(MetricLossConfig(loss=loss, identity=0.1), raw=((3.0, 4.0),))
    without = loss_of(MetricLossConfig(loss=loss, identity=0.0), raw=((3.0, 4.0),))
    assert with_term - without == pytest.approx(2.5, rel=1e-3)


@pytest.mark.parametrize("loss", ["hypersphere", "attract_only", "center", "infonce"])
def test_gradient_reaches_the_patch_but_never_the_anchors(loss):
    embedded = torch.tensor([[0.5, 0.25]], requires_grad=True)
    anchors = torch.tensor(ANCHORS, requires_grad=True)
    radius = torch.tensor(0.1, requires_grad=True)
    config = MetricLossConfig(loss=loss)
    metric_loss(embedded, embedded.detach(), anchors, radius, config).backward()
    assert anchors.grad is None
    assert embedded.grad is not None
    assert embedded.grad.abs().sum() > 0
    assert (radius.grad is not None) == (loss in ("hypersphere", "attract_only"))


@pytest.mark.parametrize(
    "options", [{"loss": "mean"}, {"attract": 0}, {"repel": -1}, {"epochs": 0}, {"batch": 0}]
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ConfigError):
        MetricLossConfig(**options)


def normal_patches(n: int = 1500, dim: int = 12) -> np.ndarray:
    rng = np.random.default_rng(0)
    means = 2 * rng.normal(size=(10, dim))
    return (means[rng.integers(10, size=n)] + rng.normal(size=(n, dim))).astype(np.float32)


def coreset_of(patches: np.ndarray) -> np.ndarray:
    return patches[k_center(patches, 60, seed=0).indices]


def test_default_training_keeps_its_spread_and_lowers_the_loss():
    patches = normal_patches()
    trained, log = train_generator(
        Generator.identity(12), patches, coreset_of(patches), MetricLossConfig(epochs=6), seed=0
    )
    assert not log.collapsed
    assert not trained.is_identity
    assert len(log.loss) == len(log.spread) == 6
    assert log.loss[-1] < log.loss[0]
    assert min(log.spread) > 0.9
    kept = trained(patches).std(0, ddof=1).mean() / patches.std(0, ddof=1).mean()
    assert log.spread[-1] == pytest.approx(kept, rel=1e-4)


def test_guard_undoes_a_collapse_and_gives_back_the_incoming_generator():
    patches = normal_patches()
    mean = patches.mean(0, keepdims=True)
    config = MetricLossConfig(loss="attract_only", identity=0.0, epochs=40, learning_rate=0.03)
    incoming = Generator(np.full((12, 12), 1e-3, np.float32), np.zeros(12, np.float32))
    seen: list[tuple[int, float, float]] = []
    found, log = train_generator(
        incoming, patches, mean, config, seed=0, on_epoch=lambda *state: seen.append(state)
    )
    assert log.collapsed
    assert found is incoming
    assert (incoming.weight == np.float32(1e-3)).all()
    assert log.spread[-1] < config.min_spread <= min(log.spread[:-1])
    assert [(i, log.loss[i], log.spread[i]) for i in range(len(log.loss))] == seen


def test_guard_catches_a_last_step_that_blows_up():
    patches = normal_patches(200)
    config = MetricLossConfig(batch=1000, learning_rate=1e37, weight_decay=0.0)
    incoming = Generator.identity(12)
    found, log = train_generator(incoming, patches, coreset_of(patches), config, seed=0)
    assert np.isfinite(log.loss).all()  # the loss was that of before the step
    assert log.collapsed
    assert found is incoming


def test_same_seed_same_generator():
    patches = normal_patches(600)
    anchors = coreset_of(patches)
    config = MetricLossConfig(epochs=2, batch=100)

    def run(seed: int) -> str:
        return train_generator(Generator.identity(12), patches, anchors, config, seed=seed)[
            0
        ].hash()

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_training_leaves_its_inputs_alone():
    patches = normal_patches(300)
    anchors = coreset_of(patches)
    before = patches.copy(), anchors.copy()
    incoming = Generator.identity(12)
    train_generator(incoming, patches, anchors, MetricLossConfig(), seed=0)
    np.testing.assert_array_equal(patches, before[0])
    np.testing.assert_array_equal(anchors, before[1])
    assert incoming.is_identity


def test_constant_features_neither_divide_by_zero_nor_collapse():
    patches = np.ones((50, 4), np.float32)
    _, log = train_generator(
        Generator.identity(4), patches, patches[:1], MetricLossConfig(), seed=0
    )
    assert log.spread == [1.0]
    assert not log.collapsed


@pytest.mark.parametrize(("anchors", "rows"), [("global", [4]), ("local", [6]), ("union", [6, 4])])
def test_a_site_pulls_to_the_anchors_of_its_option(
    anchors: Anchors, rows: list[int], monkeypatch: pytest.MonkeyPatch
):
    """Given the global memory of 4 rows and its own of 6, from the second round on."""
    site = fake_site("a", FedDyMemConfig(rows=6, update="ema", train=True, anchors=anchors))
    site.update(1, None)
    own, known = site.bank, make_bank(4)
    banks = {6: own.vectors, 4: known.vectors}
    seen: list[np.ndarray] = []

    def training(generator, raw, targets, config, *, seed):
        seen.append(targets)
        return train_generator(generator, raw, targets, config, seed=seed)

    monkeypatch.setattr("fedvad.detectors.memory.site.train_generator", training)
    site.update(2, known)
    np.testing.assert_array_equal(seen[0], np.concatenate([banks[count] for count in rows]))
