"""The loop: what it minimises, when it stops, what it restores, and what stops it with a reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedvad.detectors.student.dcam.loss import imitation_loss
from fedvad.detectors.student.dcam.options import ImitationConfig
from fedvad.detectors.student.loss import cosine_loss
from fedvad.detectors.student.parameters import (
    buffers_of,
    load_buffers,
    load_parameters,
    parameters_of,
)
from fedvad.detectors.student.rd.loss import reverse_loss
from fedvad.detectors.student.training import TrainConfig, make_optimiser, train_student
from fedvad.errors import ConfigError, DataError, MismatchError

PLAIN = TrainConfig(epochs=1, learning_rate=0.1, momentum=0, weight_decay=0, warmup=0, clip=None)


class Point(nn.Module):
    """Two numbers to be moved."""

    def __init__(self, x: float = 1.0, y: float = -2.0) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.tensor([x, y]))
        self.frozen = nn.Parameter(torch.tensor([5.0]), requires_grad=False)
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("scratch", torch.zeros(2), persistent=False)


def _once(_: np.random.Generator) -> list[Tensor]:
    return [torch.tensor(1.0)]


def _pulled(point: Point) -> Any:
    """Half the squared distance to zero, times the batch: its gradient is the point itself."""
    return lambda batch: batch * 0.5 * point.at.square().sum()


def test_one_step_is_plain_gradient_descent() -> None:
    point = Point()
    record = train_student(point, _pulled(point), _once, PLAIN, seed=0)
    torch.testing.assert_close(point.at.detach(), torch.tensor([0.9, -1.8]))
    assert record.loss == [pytest.approx(2.5)]
    assert (record.steps, record.best, record.stopped_early) == (1, 0, False)
    assert not point.training


def test_a_penalty_is_added_once_per_step_and_sees_the_batch() -> None:
    point, seen = Point(), []

    def penalty(student: nn.Module, batch: Tensor) -> Tensor:
        assert student is point
        seen.append(float(batch))
        return 3 * point.at.sum()

    record = train_student(
        point, _pulled(point), lambda _: [torch.tensor(1.0), torch.tensor(0.0)], PLAIN,
        seed=0, penalty=penalty,
    )  # fmt: skip
    assert seen == [1.0, 0.0]
    torch.testing.assert_close(point.at.detach(), torch.tensor([0.9 - 0.3 - 0.3, -1.8 - 0.6]))
    assert record.loss == [pytest.approx(((2.5 - 3) + 3 * (0.6 - 2.1)) / 2)]


def test_a_correction_is_added_to_the_clipped_gradient() -> None:
    point = Point(3.0, 4.0)
    config = TrainConfig(**{**vars(PLAIN), "clip": 1.0})
    shift = {
        "at": torch.tensor([10.0, 0.0]),
        "norm.weight": torch.zeros(2),
        "norm.bias": torch.zeros(2),
    }
    train_student(point, _pulled(point), _once, config, seed=0, correction=shift)
    expected = torch.tensor([3.0 - 0.1 * (0.6 + 10), 4.0 - 0.1 * 0.8])
    torch.testing.assert_close(point.at.detach(), expected)
    with pytest.raises(MismatchError, match="correction"):
        train_student(point, _pulled(point), _once, config, seed=0, correction={"at": shift["at"]})


def test_the_learning_rate_warms_up_to_its_value() -> None:
    point, rates = Point(), []
    config = TrainConfig(epochs=5, learning_rate=0.4, warmup=3)
    optimiser = make_optimiser(point, config)
    train_student(
        point, _pulled(point), _once, config, seed=0, optimiser=optimiser,
        on_step=lambda *_: rates.append(optimiser.param_groups[0]["lr"]),
    )  # fmt: skip
    np.testing.assert_allclose(rates, [0.1, 0.2, 0.3, 0.4, 0.4])


def test_the_rate_drops_twice_towards_the_last_step() -> None:
    config = TrainConfig(steps=20, learning_rate=1.0, warmup=1, drop=0.2)
    rates = [config.rate(step) for step in range(1, 21)]
    np.testing.assert_allclose(rates, [0.5] + [1.0] * 15 + [0.2] * 2 + [0.04] * 2)
    assert TrainConfig(steps=20, learning_rate=1.0).rate(100) == 1.0


def test_the_rate_falls_along_half_a_cosine_over_all_rounds() -> None:
    config = TrainConfig(batch=8, learning_rate=1.0, warmup=0, decay="cosine")
    config = config.in_rounds(2, images=72)
    assert (config.steps, config.whole, config.validate_every) == (5, 10, 5)
    assert config.in_rounds(4, images=72, steps=200).validate_every == 50
    rates = [replace(config, begun=b).rate(s) for b in (0, 5) for s in range(1, 6)]
    expected = 0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * np.arange(10) / 10))
    np.testing.assert_allclose(rates, expected)
    more = [replace(config, begun=b).rate(s) for b in (10, 15) for s in range(1, 6)]
    own = 0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * np.arange(5) / 5))
    np.testing.assert_allclose(more, [*own, *own])  # rounds more than planned
    assert replace(config, decay="none").rate(9) == 1.0


def test_it_is_validated_as_often_as_asked_for_and_the_last_step_kept_if_not_to_choose() -> None:
    point, values = Point(), iter([1.0, 5.0, 4.0])
    config = TrainConfig(steps=7, learning_rate=0.1, validate_every=3, patience=1)
    record = train_student(
        point, _pulled(point), lambda _: [torch.tensor(1.0)] * 4, config,
        seed=0, validate=lambda: next(values), choose=False,
    )  # fmt: skip
    assert record.at == [3, 6, 7]
    assert record.validation == [1.0, 5.0, 4.0]
    assert (record.best, record.steps, record.stopped_early) == (2, 7, False)
    both = record.then(record, begun=7)
    assert (both.at, both.steps, both.best) == ([3, 6, 7, 10, 13, 14], 14, 5)


def test_adams_first_step_has_the_length_of_the_rate_and_momentum_is_its_first_decay() -> None:
    config = TrainConfig(**{**vars(PLAIN), "optimiser": "adam", "momentum": 0.5})
    point = Point()
    assert make_optimiser(point, config).defaults["betas"] == (0.5, 0.999)
    train_student(point, _pulled(point), _once, config, seed=0)
    torch.testing.assert_close(point.at.detach(), torch.tensor([0.9, -1.9]))


def test_a_part_can_have_a_share_of_the_rate() -> None:
    both = torch.nn.ModuleDict({"slow": Point(), "fast": Point()})
    config = TrainConfig(**vars(PLAIN))
    start = {n: p.detach().clone() for n, p in both.named_parameters()}

    def pulled(_: object) -> torch.Tensor:
        return sum((p.sum() for p in both.parameters()), torch.zeros(()))

    train_student(
        both, pulled, _once, config, seed=0, optimiser=make_optimiser(both, config, {"slow.": 0.1})
    )
    moved = {n: float((p.detach() - start[n]).abs().max()) for n, p in both.named_parameters()}
    assert moved["slow.at"] == pytest.approx(0.1 * moved["fast.at"], rel=1e-4)
    assert len(make_optimiser(both, config, {"none.": 0.1}).param_groups) == 1


def test_an_optimiser_can_be_carried_on_with() -> None:
    config = TrainConfig(**{**vars(PLAIN), "momentum": 0.9})
    point, other = Point(), Point()
    optimiser = make_optimiser(point, config)
    for _ in range(2):
        train_student(point, _pulled(point), _once, config, seed=0, optimiser=optimiser)
        train_student(other, _pulled(other), _once, config, seed=0)
    assert other.at.tolist()[0] == pytest.approx(0.81)
    assert point.at.tolist()[0] == pytest.approx(0.81 - 0.1 * 0.9)  # momentum went on


def test_steps_count_instead_of_epochs() -> None:
    point, seen = Point(), []
    config = TrainConfig(epochs=1, steps=7, learning_rate=0.1)
    record = train_student(
        point, _pulled(point), lambda _: [torch.tensor(1.0)] * 3, config,
        seed=0, on_step=lambda step, loss: seen.append((step, loss)),
    )  # fmt: skip
    assert record.steps == 7
    assert len(record.loss) == 3
    assert [step for step, _ in seen] == list(range(1, 8))
    assert seen[0][1] == pytest.approx(2.5)


def test_the_best_weights_by_validation_come_back_with_their_buffers() -> None:
    point = Point()
    values = iter([5.0, 3.0, 4.0, math.nan, 6.0])
    path: list[tuple[Tensor, Tensor]] = []

    def validate() -> float:
        assert not point.training
        point.norm.running_mean.add_(1)  # type: ignore[union-attr]
        path.append((point.at.detach().clone(), point.norm.running_mean.clone()))  # type: ignore[union-attr, operator]
        return next(values)

    config = TrainConfig(epochs=50, learning_rate=0.1, patience=3)
    record = train_student(point, _pulled(point), _once, config, seed=0, validate=validate)
    assert record.stopped_early
    assert record.best == 1
    assert len(record.validation) == len(record.loss) == 5
    assert torch.equal(point.at, path[1][0])
    assert torch.equal(point.norm.running_mean, path[1][1])  # type: ignore[arg-type]


def test_a_seed_decides_the_order_and_nothing_else_does() -> None:
    def orders(seed: int) -> list[list[int]]:
        seen = []

        def batches(rng: np.random.Generator) -> Iterator[Tensor]:
            seen.append(rng.permutation(20).tolist())
            yield torch.tensor(1.0)

        point = Point()
        train_student(
            point, _pulled(point), batches, TrainConfig(epochs=2, learning_rate=0.1), seed=seed
        )
        return seen

    np.random.seed(3)  # noqa: NPY002  (the global state must not matter)
    first = orders(4)
    assert first[0] != first[1]
    assert orders(4) == first
    assert orders(5) != first


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_says_what_to_do(value: float) -> None:
    point = Point()
    with pytest.raises(ConfigError, match=r"step 0; lower the learning rate \(now 0\.1\)"):
        train_student(point, lambda _: point.at.sum() * value, _once, PLAIN, seed=0)
    torch.testing.assert_close(point.at.detach(), torch.tensor([1.0, -2.0]))


def test_nothing_to_train_and_nothing_to_train_on_are_refused() -> None:
    point = Point()
    with pytest.raises(DataError, match="batch"):
        train_student(point, _pulled(point), lambda _: [], PLAIN, seed=0)
    with pytest.raises(ConfigError, match="no trainable"):
        train_student(nn.ReLU(), lambda _: torch.tensor(0.0), _once, PLAIN, seed=0)


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"steps": 0}, {"learning_rate": 0.0}, {"momentum": 1.0}, {"warmup": -1},
     {"clip": 0.0}, {"patience": 0}, {"batch": 0}, {"weight_decay": math.nan},
     {"optimiser": "lion"}, {"drop": 0.0, "steps": 9}, {"drop": 0.5},
     {"decay": "linear"}, {"begun": -1}, {"whole": 0}, {"validate_every": 0}],
)  # fmt: skip
def test_impossible_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        TrainConfig(**wrong)


class TestWeightsAsArrays:
    def test_only_what_is_trained_and_only_what_is_stored(self) -> None:
        point = Point()
        assert set(parameters_of(point)) == {"at", "norm.weight", "norm.bias"}
        assert set(buffers_of(point)) == {"norm.running_mean", "norm.running_var"}

    def test_they_are_copies_and_come_back_exactly(self) -> None:
        source, target = Point(), Point(7.0, 8.0)
        source.norm.running_var.fill_(0.3)  # type: ignore[union-attr, operator]
        parameters, buffers = parameters_of(source), buffers_of(source)
        with torch.no_grad():
            source.at.zero_()
        assert parameters["at"].tolist() == [1.0, -2.0]
        load_parameters(target, parameters)
        load_buffers(target, buffers)
        parameters["at"][:] = 99
        assert target.at.tolist() == [1.0, -2.0]
        assert target.norm.running_var.tolist() == pytest.approx([0.3, 0.3])  # type: ignore[union-attr, operator]
        assert target.at.requires_grad

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"at": None}, r"1 missing \(at\)"),
            ({"more": np.zeros(1)}, r"1 unknown \(more\)"),
            ({"at": np.zeros(3, np.float32)}, r"at has shape \(3,\)"),
            ({"at": np.array([1, np.nan], np.float32)}, "not finite"),
        ],
    )
    def test_others_are_refused_and_nothing_is_changed(
        self, change: dict[str, Any], match: str
    ) -> None:
        point = Point()
        arrays = {k: v + 1 for k, v in parameters_of(point).items()} | change
        with pytest.raises(MismatchError, match=match):
            load_parameters(point, {k: v for k, v in arrays.items() if v is not None})
        assert point.at.tolist() == [1.0, -2.0]
        assert point.norm.weight.tolist() == [1.0, 1.0]


def test_mixed_precision_multiplies_in_bfloat16_and_keeps_the_rest_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    image, aim = (torch.randn(2, c, 5, 5, generator=generator) for c in (3, 4))
    begin = torch.randn(4, 3, 1, 1, generator=generator)
    layer = nn.Conv2d(3, 4, 1, bias=False)
    seen = []

    def loss(_: Tensor) -> Tensor:
        out = layer(image)
        seen.append(out.dtype)
        return cosine_loss([aim], [out])

    def train(mixed: bool) -> Tensor:
        with torch.no_grad():
            layer.weight.copy_(begin)
        config = replace(PLAIN, steps=4, mixed_precision=mixed)
        train_student(
            layer, loss, lambda _: [aim] * 4, config,
            seed=0, validate=lambda: float(loss(aim).detach()),
        )  # fmt: skip
        return layer.weight.detach().clone()

    plain = train(False)
    assert set(seen) == {torch.float32}
    seen.clear()
    mixed = train(True)
    assert seen == [torch.bfloat16] * 4 + [torch.float32]
    assert mixed.dtype == torch.float32
    moved = (plain - begin).norm()
    assert 0 < (mixed - plain).norm() < 0.1 * moved


@pytest.mark.parametrize(
    "loss",
    [
        lambda t, s: cosine_loss([t], [s]),
        lambda t, s: reverse_loss([t], [s], "hard+global"),
        lambda t, s: imitation_loss([t], [s], ImitationConfig()),
    ],
    ids=["cosine", "hard+global", "imitation"],
)
def test_losses_of_bfloat16_maps_are_computed_in_float32(
    loss: Callable[[Tensor, Tensor], Tensor],
) -> None:
    generator = torch.Generator().manual_seed(0)
    t, s = torch.randn(2, 2, 6, 9, 9, generator=generator)
    rounded = s.bfloat16()
    value = loss(t, rounded)
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(loss(t, rounded.float())), rel=1e-6)
