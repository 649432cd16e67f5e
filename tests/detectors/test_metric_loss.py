from __future__ import annotations

import numpy as np
import pytest
import torch

from fedvad.detectors.memory.generator import Generator
from fedvad.detectors.memory.metric_loss import (
    LossMode,
    MetricLossConfig,
    TrainingLog,
    metric_loss,
    train_generator,
    usual_distance,
)
from fedvad.detectors.memory.site import Anchors, FedDyMemConfig, Update
from fedvad.errors import ConfigError, MemoryBankError
from fedvad.memory.coreset import k_center
from fedvad.memory.reduce import cells
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
    config = MetricLossConfig(loss="attract_only", attract=3)
    assert loss_of(config) == pytest.approx((1 + 4 + 9) / 3)
    # of 1, 4, 9 only 4 - 2.25 and 9 - 2.25 remain
    assert loss_of(config, radius=1.5) == pytest.approx((1.75 + 6.75) / 3)


def test_repulsion_acts_on_the_next_anchors_that_lie_inside():
    config = MetricLossConfig(attract=2, repel=2, margin=0.5)
    assert loss_of(config) == pytest.approx((1 + 4) / 2)
    # radius^2 = 12.25: nothing attracts, 12.25 - 9 - 0.5 repels, 12.25 - 16 - 0.5 does not
    assert loss_of(config, radius=3.5) == pytest.approx(2.75 / 2)


def test_fewer_anchors_than_asked_for_all_attract():
    many = MetricLossConfig(attract=9, repel=3)
    assert loss_of(many) == pytest.approx((1 + 4 + 9 + 16) / 4)
    three = MetricLossConfig(attract=3, repel=3, margin=0.0)
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


def test_repulsion_acts_from_the_first_step_and_the_radius_is_carried_on():
    patches = normal_patches()
    anchors = coreset_of(patches)

    def run(loss: LossMode, radius: float = 1.0) -> tuple[str, TrainingLog]:
        config = MetricLossConfig(loss=loss, batch=500)
        start = Generator.identity(12)
        trained, log = train_generator(start, patches, anchors, config, seed=0, radius=radius)
        return trained.hash(), log

    repelled, log = run("hypersphere")
    assert repelled != run("attract_only")[0]
    assert log.radius != 1
    again, later = run("hypersphere", log.radius)
    assert again != repelled
    assert later.radius != log.radius


def test_a_radius_of_one_lets_half_of_the_anchors_attract_whatever_the_units():
    patches = torch.from_numpy(normal_patches(400))
    anchors = torch.from_numpy(coreset_of(normal_patches()))
    config = MetricLossConfig()
    usual = usual_distance(patches, anchors, config)
    nearest = torch.cdist(patches, anchors).topk(config.attract, largest=False).values
    assert (nearest > usual).float().mean() == pytest.approx(0.5, abs=0.01)
    assert usual_distance(100 * patches, 100 * anchors, config) == pytest.approx(100 * usual)
    assert usual_distance(anchors[:1], anchors[:1], config) == 1  # no distance to measure in


def test_the_identity_term_holds_training_back():
    patches = normal_patches()

    def way(identity: float) -> float:
        config = MetricLossConfig(identity=identity, epochs=10)
        start = Generator.identity(12)
        trained, _ = train_generator(start, patches, coreset_of(patches), config, seed=0)
        return float(np.square(trained(patches) - patches).sum(1).mean())

    assert way(identity=10.0) < 0.5 * way(identity=0.0)


def test_guard_undoes_a_collapse_and_gives_back_the_incoming_generator():
    patches = normal_patches()
    mean = patches.mean(0, keepdims=True)
    config = MetricLossConfig(loss="center", identity=0.0, epochs=40, learning_rate=0.03)
    incoming = Generator(np.full((12, 12), 1e-3, np.float32), np.zeros(12, np.float32))
    found, log = train_generator(incoming, patches, mean, config, seed=0)
    assert log.collapsed
    assert found is incoming
    assert (incoming.weight == np.float32(1e-3)).all()
    assert log.spread[-1] < config.min_spread <= min(log.spread[:-1])
    assert len(log.loss) == len(log.spread)


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
    site_bank, before = site.bank, site.generator
    known = make_bank(4)
    seen: list[np.ndarray] = []
    patches: list[np.ndarray] = []

    def training(generator, raw, targets, config, **how):
        seen.append(targets)
        patches.append(raw)
        return train_generator(generator, raw, targets, config, **how)

    monkeypatch.setattr("fedvad.detectors.memory.site.train_generator", training)
    site.update(2, known)
    # of its own rows the means of the patches nearest to them, not the extremes of a coreset
    own = cells(patches[0], site_bank.vectors, pull=1.0)
    banks = {6: own.vectors, 4: known.vectors}
    expected = before(np.concatenate([banks[count] for count in rows]))
    np.testing.assert_allclose(seen[0], expected, rtol=1e-6)
    assert not np.isin(own.vectors, site_bank.vectors).all()


def test_a_large_memory_pulls_by_as_many_means_as_a_site_sends(monkeypatch: pytest.MonkeyPatch):
    site = fake_site("a", FedDyMemConfig(rows=6, update="ema", train=True))
    seen: list[int] = []

    def training(generator, raw, targets, config, **how):
        seen.append(len(targets))
        return train_generator(generator, raw, targets, config, **how)

    monkeypatch.setattr("fedvad.detectors.memory.site.train_generator", training)
    site.update(1, make_bank(30))
    assert seen == [6]


@pytest.mark.parametrize("update", ["grow", "ema"])
def test_a_site_that_trains_sends_the_rows_of_one_that_does_not(update: Update):
    """Raw descriptors, of which every site makes what its own generator does."""
    sent = []
    for train in (False, True):
        site = fake_site("a", FedDyMemConfig(rows=6, update=update, train=train, candidates=0.5))
        sent.append([site.update(round_, None).vectors for round_ in (1, 2)])
        assert site.generator.is_identity is not train
    np.testing.assert_array_equal(sent[0], sent[1])


def test_a_site_goes_on_with_its_generator_and_its_radius():
    config = FedDyMemConfig(rows=6, update="ema", train=True)
    whole, halves = fake_site("a", config), fake_site("a", config)
    for round_ in (1, 2):
        whole.update(round_, None)
    halves.update(1, None)
    kept = halves.snapshot()
    assert float(kept["generator/radius"][0]) == halves.training[0].radius != 1
    resumed = fake_site("a", config)
    resumed.restore(kept)
    resumed.update(2, None)
    assert resumed.generator.hash() == whole.generator.hash()
    assert resumed.radius == whole.radius
    resumed.restore(kept | {"generator/radius": np.array([3.0])})
    resumed.update(2, None)
    assert resumed.generator.hash() != whole.generator.hash()
    kept.pop("generator/radius")
    with pytest.raises(MemoryBankError, match="begin the federation again"):
        resumed.restore(kept)
