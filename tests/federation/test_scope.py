"""Weight-scope alignment: its divergence, its gradient, its fusion rules."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from fedvad.detectors.student.aand.amplify import Gate
from fedvad.detectors.student.aand.options import AmplifyConfig
from fedvad.detectors.student.amsl.net import AdaptiveMemories
from fedvad.detectors.student.amsl.options import MemoriesConfig
from fedvad.detectors.student.daad.net import MemoryStudent
from fedvad.detectors.student.daad.options import BlockConfig
from fedvad.errors import ConfigError, MismatchError
from fedvad.federation.exchange.scope import (
    Fusion,
    WSAConfig,
    fuse_scopes,
    layers_in_scope,
    scope_of,
    scope_penalty,
)

PLAIN = WSAConfig(strength=1.0, min_numel=1)


def layer(mean: float = 0.0, deviation: float = 0.2, seed: int = 0) -> torch.Tensor:
    values = torch.randn(12, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (mean + deviation * values).requires_grad_()


def scope(weights: torch.Tensor) -> dict[str, tuple[float, float, int]]:
    return scope_of({"w": weights.detach().numpy()}, PLAIN)


def test_a_model_diverges_from_its_own_scope_by_nothing() -> None:
    weights = layer(0.3)
    penalty = scope_penalty({"w": weights}, scope(weights), PLAIN)
    penalty.backward()
    assert abs(float(penalty.detach())) < 1e-12
    assert weights.grad is not None
    assert float(weights.grad.abs().max()) < 1e-12


def test_the_gradient_is_the_closed_form() -> None:
    weights, target = layer(0.3, 0.2), {"w": (0.1, 0.05, 120)}
    scope_penalty({"w": weights}, target, PLAIN).backward()
    w = weights.detach()
    mean, variance = w.mean(), w.var(unbiased=False)
    expected = ((mean - 0.1) / 0.05**2 + (w - mean) * (1 / 0.05**2 - 1 / variance)) / w.numel()
    assert weights.grad is not None
    torch.testing.assert_close(weights.grad, expected, rtol=1e-6, atol=1e-9)


def test_the_divergence_is_that_of_two_gaussians() -> None:
    weights = layer(0.3, 0.2)
    p = torch.distributions.Normal(weights.mean(), weights.std(unbiased=False))
    q = torch.distributions.Normal(torch.tensor(0.1).double(), torch.tensor(0.5).double())
    target = {"w": (0.1, 0.5, 120)}
    penalty = scope_penalty({"w": weights}, target, PLAIN)
    torch.testing.assert_close(penalty, torch.distributions.kl_divergence(p, q))


def test_descent_reaches_the_target_and_keeps_the_order_of_the_weights() -> None:
    weights = layer(0.0, 0.2)
    order = weights.detach().flatten().argsort()
    for _ in range(3000):
        penalty = scope_penalty({"w": weights}, {"w": (0.0, 0.05, 120)}, PLAIN)
        (gradient,) = torch.autograd.grad(penalty, weights)
        with torch.no_grad():
            weights -= 0.01 * gradient
    assert float(weights.std(unbiased=False)) == pytest.approx(0.05, rel=1e-3)
    assert torch.equal(weights.detach().flatten().argsort(), order)


def test_the_layers_of_a_model_add_up() -> None:
    parameters = {"a": layer(0.1), "b": layer(0.4, seed=1)[:2].detach()}
    target = {"a": (0.0, 0.1, 120), "b": (0.0, 0.1, 20)}
    each = [float(scope_penalty(parameters, {n: target[n]}, PLAIN)) for n in target]
    assert float(scope_penalty(parameters, target, PLAIN)) == pytest.approx(sum(each))


@pytest.mark.parametrize("fusion", get_args(Fusion))
def test_identical_sites_keep_their_scope_under_every_rule(fusion: Fusion) -> None:
    own = scope(layer(0.2, 0.3))
    config = WSAConfig(fusion=fusion)
    fused = fuse_scopes([own] * 3, [5, 1, 2], config, before=own, averaged=own)
    assert fused["w"] == pytest.approx(own["w"])


def test_a_mixture_of_two_halves_is_the_whole() -> None:
    whole = layer(0.2, 0.3).detach()
    halves = [scope(whole[:3] + 1.0), scope(whole[3:])]
    joined = scope(torch.cat([whole[:3] + 1.0, whole[3:]]))
    halves = [{"w": (*h["w"][:2], 120)} for h in halves]
    fused = fuse_scopes(halves, [3, 9], WSAConfig(fusion="mixture"), before=joined, averaged=joined)
    assert fused["w"][:2] == pytest.approx(joined["w"][:2])


def test_an_average_of_independent_models_shrinks_which_the_default_target_does_not() -> None:
    models = [layer(0.0, 0.2, seed=i).detach() for i in range(16)]
    averaged = scope(torch.stack(models).mean(0))
    scopes = [scope(m) for m in models]
    target = fuse_scopes(scopes, [1] * 16, WSAConfig(), before=scopes[0], averaged=averaged)
    assert averaged["w"][1] < 0.07
    assert target["w"][1] == pytest.approx(0.2, rel=0.1)


def test_only_tables_of_some_size_take_part() -> None:
    shapes = {"conv": (8, 3, 3, 3), "norm": (8,), "small": (2, 4), "head": (10, 8)}
    assert layers_in_scope(shapes, WSAConfig()) == ["conv", "head"]


def test_memories_of_vectors_take_no_part() -> None:
    daad = MemoryStudent([(6, 8, 8), (8, 4, 4)], BlockConfig(items=20), width=1.0, seed=0)
    amsl = AdaptiveMemories((2, 8, 8), MemoriesConfig(items=20), seed=0)
    gate = Gate((8, 4, 4), AmplifyConfig(items=20))
    for net, memories in ((daad, 2), (amsl, 8), (gate, 1)):
        shapes = {name: tuple(p.shape) for name, p in net.named_parameters()}
        tables = {name for name, shape in shapes.items() if len(shape) >= 2}
        left = tables - set(layers_in_scope(shapes, WSAConfig(min_numel=1)))
        assert len(left) == memories
        assert all(20 in shapes[name] or 40 in shapes[name] for name in left)


def test_constant_layers_and_targets_do_no_harm() -> None:
    weights = torch.zeros(8, 8, requires_grad=True)
    penalty = scope_penalty({"w": weights}, {"w": (0.0, 0.1, 64)}, PLAIN)
    penalty.backward()
    assert bool(torch.isfinite(penalty))
    assert weights.grad is not None
    assert bool(torch.isfinite(weights.grad).all())
    assert float(scope_penalty({"w": weights}, {"w": (0.0, 0.0, 64)}, PLAIN)) == 0


def test_targets_of_another_model_are_refused() -> None:
    with pytest.raises(MismatchError):
        scope_penalty({"w": layer()}, {"v": (0.0, 1.0, 120)}, PLAIN)
    with pytest.raises(MismatchError):
        fuse_scopes([{"w": (0.0, 1.0, 3)}], [1], PLAIN, before={"w": (0.0, 1.0, 4)}, averaged={})
    with pytest.raises(ConfigError, match="fusion"):
        WSAConfig(fusion="mean")  # type: ignore[arg-type]
