"""Weight averaging: the mean, the clients' terms, and what a server refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedvad.detectors.student.parameters import parameters_of
from fedvad.detectors.student.training import TrainConfig, Trainer, TrainLog, train_student
from fedvad.errors import ConfigError, FederationError, MismatchError, PayloadError
from fedvad.federation.exchange.averages import _AVERAGES, average_class, weights_for
from fedvad.federation.exchange.scope import WSAConfig, scope_of
from fedvad.federation.exchange.terms import ClientTerms, WeightConfig
from fedvad.federation.exchange.weights import WeightExchange, WeightSite
from fedvad.federation.ledger import Ledger
from fedvad.federation.mailboxes.inprocess import Schedule, run_rounds
from fedvad.federation.payload import Payload
from fedvad.runs.config import resolve_config
from fedvad.verbs.bank_server import _check_same, _Federation

SGD = TrainConfig(
    steps=8, learning_rate=0.05, momentum=0.0, weight_decay=0.0, warmup=0, clip=None, patience=None
)


class Fit:
    """A linear model that fits its own site's line: sites disagree."""

    def __init__(self, slope: float, config: TrainConfig = SGD) -> None:
        torch.manual_seed(0)
        self.student: torch.nn.Module = torch.nn.Linear(4, 4)
        self.settings, self.log = config, TrainLog()
        rng = np.random.default_rng(int(100 * abs(slope)))
        self.x = torch.from_numpy(rng.normal(size=(64, 4)).astype(np.float32))
        self.y = slope * self.x
        self.penalties: list[float] = []

    def train(
        self,
        *,
        seed: int,
        penalty: Callable[[torch.nn.Module, Any], torch.Tensor] | None,
        correction: Mapping[str, torch.Tensor] | None,
        config: TrainConfig,
    ) -> TrainLog:
        def batches(rng: np.random.Generator) -> Iterator[torch.Tensor]:
            for rows in np.array_split(rng.permutation(64), 4):
                yield torch.from_numpy(rows)

        def loss(rows: torch.Tensor) -> torch.Tensor:
            return (self.student(self.x[rows]) - self.y[rows]).square().mean()

        def noted(net: torch.nn.Module, batch: Any) -> torch.Tensor:
            assert penalty is not None
            value = penalty(net, batch)
            self.penalties.append(float(value.detach()))
            return value

        return train_student(
            self.student,
            loss,
            batches,
            config,
            seed=seed,
            penalty=None if penalty is None else noted,
            correction=correction,
        )

    def represent(self, student: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = student(self.x[batch])
        return out

    in_round = Trainer.in_round


def sites(config: TrainConfig = SGD) -> dict[str, WeightSite]:
    return {
        name: WeightSite(name, Fit(slope, config), n_images=n, n_patches=64 * n, seed=i)
        for i, (name, slope, n) in enumerate([("a", 1.0, 10), ("b", -1.0, 30), ("c", 2.0, 20)])
    }


def exchange(config: WeightConfig | None = None, members: int = 3) -> WeightExchange:
    config = config or WeightConfig()
    return average_class(config.algorithm)(
        features="f",
        initial=parameters_of(Fit(1.0).student),
        config=config,
        sites=members,
    )


def run(config: WeightConfig | None = None, rounds: int = 3, **options: Any) -> Payload:
    return run_rounds(
        exchange(config), sites(), Schedule(rounds=rounds), ledger=Ledger(), **options
    )


def weights(payload: Payload) -> dict[str, np.ndarray]:
    return {n[7:]: a for n, a in payload.arrays.items() if n.startswith("weight/")}


def test_the_mean_weighs_sites_by_their_images() -> None:
    server, members = exchange(), sites()
    sent = {n: server.site_step(s, None, 1) for n, s in members.items()}
    for payload in reversed(list(sent.values())):
        server.accept(payload)
    merged = weights(server.merge(1))
    for name, value in merged.items():
        rows = [sent[s].arrays[f"weight/{name}"] for s in "abc"]
        np.testing.assert_allclose(
            value, (10 * rows[0] + 30 * rows[1] + 20 * rows[2]) / 60, rtol=1e-6
        )


class Median(WeightExchange):
    """A variant of the mean: no more than this."""

    def _averaged(self, sent: Any, shares: Any) -> dict[str, np.ndarray]:
        return {name: np.median([own[name] for own in sent], axis=0) for name in self._weights}


def test_another_mean_is_one_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_AVERAGES, "moon", f"{__name__}:Median")
    server, members = exchange(WeightConfig("moon")), sites()
    sent = [server.site_step(s, None, 1) for s in members.values()]
    remote = weights_for(sent[0], "moon")
    for payload in sent:
        server.accept(payload)
        remote.accept(payload)
    merged = server.merge(1)
    for name, value in weights(merged).items():
        np.testing.assert_array_equal(value, np.median([weights(p)[name] for p in sent], axis=0))
        assert value.dtype == np.float32
    assert remote.merge(1).to_bytes() == merged.to_bytes()
    assert type(weights_for(sent[0])) is WeightExchange


def test_a_server_of_files_keeps_the_mean_of_its_first_round() -> None:
    upload = exchange().site_step(sites()["a"], None, 1)
    moon = resolve_config(method="stfpm", student={"algorithm": "moon"})
    begun = _Federation.of(upload, moon, limited=False)
    assert begun.exchange_for(upload).config.algorithm == "moon"  # type: ignore[attr-defined]
    _check_same(begun, None, moon)
    with pytest.raises(ConfigError, match="algorithm was 'moon', now 'fedavg'"):
        _check_same(begun, None, resolve_config(method="stfpm"))


def test_the_mean_is_that_of_a_maintained_implementation() -> None:
    aggregate = pytest.importorskip("flwr.server.strategy.aggregate").aggregate
    server, members = exchange(), sites()
    sent = [server.site_step(s, None, 1) for s in members.values()]
    for payload in sent:
        server.accept(payload)
    theirs = aggregate([(list(weights(p).values()), p.manifest.n_images) for p in sent])
    for ours, other in zip(weights(server.merge(1)).values(), theirs, strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-6)


@pytest.mark.parametrize("algorithm", ["fedavg", "fedprox", "scaffold", "moon"])
@pytest.mark.parametrize("wsa", [None, WSAConfig(0.1, min_numel=1)])
def test_runs_are_deterministic_and_resume_to_the_bit(
    algorithm: Any, wsa: WSAConfig | None, tmp_path: Path
) -> None:
    config = WeightConfig(algorithm, wsa=wsa)
    whole = run(config)

    class Stop(Exception):
        pass

    def stop(round_: int, site: str) -> None:
        if (round_, site) == (3, "b"):
            raise Stop

    with pytest.raises(Stop):
        run(config, state_dir=tmp_path, on_step=stop)
    assert run(config, state_dir=tmp_path, resume=True).to_bytes() == whole.to_bytes()


def test_a_site_that_missed_a_round_resumes_with_its_own_number_of_steps() -> None:
    server, whole, resumed = exchange(), sites()["a"], sites()["a"]
    server.site_step(whole, None, 2)
    assert (whole.trainer.log.steps, whole.trainer.log.at[-1]) == (8, 16)
    resumed.restore(whole.snapshot())
    assert resumed.trainer.log == whole.trainer.log


@pytest.mark.parametrize(
    "off",
    [
        WeightConfig("fedprox", prox=0.0),
        WeightConfig("moon", moon=0.0),
        WeightConfig(wsa=WSAConfig(strength=0.0)),
    ],
)
def test_without_strength_every_remedy_is_plain_averaging_bit_for_bit(off: WeightConfig) -> None:
    plain, same = weights(run()), weights(run(off))
    assert all(np.array_equal(plain[name], same[name]) for name in plain)


def test_the_proximal_term_holds_clients_near() -> None:
    def moved(prox: float) -> float:
        server, members = exchange(WeightConfig("fedprox", prox=prox)), sites()
        return server.drift(_start(server), server.site_step(members["c"], None, 1))

    assert moved(10.0) < 0.6 * moved(0.01)


def _start(server: WeightExchange) -> Payload:
    return server.server_state()[""]


def test_the_proximal_term_is_half_mu_times_the_squared_distance() -> None:
    server, members = exchange(WeightConfig("fedprox", prox=0.3)), sites(replace(SGD, steps=2))
    before = parameters_of(members["a"].trainer.student)
    one = sites(replace(SGD, steps=1))["a"]
    server.site_step(one, None, 1)
    after_one = parameters_of(one.trainer.student)
    server.site_step(members["a"], None, 1)
    squared = sum(float(((after_one[n] - before[n]) ** 2).sum()) for n in before)
    assert members["a"].trainer.penalties == pytest.approx([0.0, 0.15 * squared], rel=1e-4)  # type: ignore[attr-defined]


def test_scaffold_controls_are_mean_gradients_and_add_up() -> None:
    server, members = exchange(WeightConfig("scaffold")), sites()
    start = weights(_start(server))
    sent = {n: server.site_step(s, None, 1) for n, s in members.items()}
    for payload in sent.values():
        server.accept(payload)
    merged = server.merge(1)
    for name, site in members.items():
        trained = weights(sent[name])
        for key in start:
            gradient = (start[key] - trained[key]) / (8 * 0.05)
            np.testing.assert_allclose(site.kept[f"control/{key}"], gradient, rtol=1e-4, atol=1e-6)
    for key in start:
        mean = np.mean([s.kept[f"control/{key}"] for s in members.values()], axis=0)
        np.testing.assert_allclose(merged.arrays[f"control/{key}"], mean, rtol=1e-5, atol=1e-7)


def test_scaffold_divides_by_all_sites_when_some_do_not_answer() -> None:
    server, members = exchange(WeightConfig("scaffold")), sites()
    sent = [server.site_step(members[name], None, 1) for name in "ab"]
    for payload in sent:
        server.accept(payload)
    merged = server.merge(1)
    for key in weights(_start(server)):
        changes = sum(payload.arrays[f"control/{key}"] for payload in sent)
        np.testing.assert_allclose(merged.arrays[f"control/{key}"], changes / 3, rtol=1e-6)


@pytest.mark.slow
def test_scaffold_corrects_drift_that_plain_averaging_keeps() -> None:
    """On quadratics with unequal curvature FedAvg's fixed point is off the joint optimum."""
    many = replace(SGD, steps=40, learning_rate=0.1)

    def gap(config: WeightConfig) -> float:
        members = sites(many)
        for name, scale in (("a", 0.3), ("b", 1.0), ("c", 1.5)):
            fit = members[name].trainer
            assert isinstance(fit, Fit)
            fit.x, fit.y = scale * fit.x, scale * fit.y
            members[name].n_images = 10
        merged = run_rounds(exchange(config), members, Schedule(rounds=40), ledger=Ledger())
        x = torch.cat([m.trainer.x for m in members.values()])  # type: ignore[attr-defined]
        y = torch.cat([m.trainer.y for m in members.values()])  # type: ignore[attr-defined]
        ones = torch.cat([x, torch.ones(len(x), 1)], 1)
        best = torch.linalg.lstsq(ones, y).solution.numpy()
        ours = weights(merged)
        return float(np.abs(ours["weight"] - best[:4].T).max())

    assert gap(WeightConfig("scaffold")) < 0.35 * gap(WeightConfig())


def test_moon_remembers_the_last_model_and_pulls_away_from_it() -> None:
    server, members = exchange(WeightConfig("moon", moon=5.0)), sites()
    first = server.site_step(members["a"], None, 1)
    fit = members["a"].trainer
    assert isinstance(fit, Fit)
    # before the first step of the first round all three models are one: softplus(0)
    assert fit.penalties[0] == pytest.approx(5 * np.log(2), rel=1e-5)
    for name, value in weights(first).items():
        np.testing.assert_array_equal(members["a"].kept[f"last/{name}"], value)


def test_moon_pulls_towards_the_global_model_and_away_from_the_last() -> None:
    """The term by hand: represented by the first output of a linear model without bias."""
    start = {"weight": np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)}
    last = {"last/weight": np.array([[0.0, 1.0], [1.0, 0.0]], np.float32)}
    net = torch.nn.Linear(2, 2, bias=False)
    terms = ClientTerms(WeightConfig("moon", moon=2.0, temperature=0.5), start, {}, last, {})
    with torch.no_grad():
        net.weight.copy_(torch.eye(2))
    penalty = terms.penalty(net, lambda student, batch: student(batch))
    assert penalty is not None
    batch = torch.tensor([[1.0, 0.0]])  # the global model gives (1, 0), the last one (0, 1)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[3.0, 0.0], [4.0, 0.0]]))  # cosines 0.6 and 0.8
    expected = -np.log(np.exp(0.6 / 0.5) / (np.exp(0.6 / 0.5) + np.exp(0.8 / 0.5)))
    assert penalty(net, batch).item() == pytest.approx(2 * expected, rel=1e-5)


def test_moons_frozen_models_keep_the_statistics_of_the_start() -> None:
    net = torch.nn.BatchNorm1d(2)
    terms = ClientTerms(WeightConfig("moon"), parameters_of(net), {}, {}, {})
    seen: list[torch.Tensor] = []

    def represent(student: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        seen.append(student(batch))
        return seen[-1]

    penalty = terms.penalty(net, represent)
    assert penalty is not None
    batch = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    net(batch)  # training moves the running statistics of the student alone
    penalty(net, batch)
    for frozen in seen[:2]:  # statistics of a new layer: mean 0, variance 1
        torch.testing.assert_close(frozen, batch, rtol=1e-4, atol=1e-4)
    assert float((seen[2] - batch).abs().max()) > 0.5


def test_scopes_align_with_wsa() -> None:
    def unlike(config: WeightConfig) -> float:
        server, members = exchange(config), sites(replace(SGD, steps=60))
        incoming = None
        for round_ in (1, 2):
            sent = [server.site_step(s, incoming, round_) for s in members.values()]
            for payload in sent:
                server.accept(payload)
            incoming = server.merge(round_)
        scopes = [scope_of(weights(p), WSAConfig(min_numel=1))["weight"][1] for p in sent]
        return float(np.std(scopes))

    strong = WSAConfig(strength=1.0, min_numel=1)
    assert unlike(WeightConfig(wsa=strong)) < 0.5 * unlike(WeightConfig())


def test_averaging_two_models_suffers_less_with_aligned_scopes() -> None:
    """Mode connectivity: the loss on the way between two sites' models, against its ends."""

    def barrier(wsa: WSAConfig | None) -> float:
        server = exchange(WeightConfig(wsa=wsa), members=2)
        members = {n: s for n, s in sites(replace(SGD, steps=150)).items() if n in "bc"}
        ends = [weights(server.site_step(s, None, 1)) for s in members.values()]
        x = members["b"].trainer.x  # type: ignore[attr-defined]

        def size(share: float) -> float:
            w = (1 - share) * ends[0]["weight"] + share * ends[1]["weight"]
            return float(np.square(x.numpy() @ w.T).mean())

        # how much smaller the averaged model's answers are than those of its ends
        middle = min(size(a) for a in np.linspace(0, 1, 21))
        return (size(0) + size(1)) / 2 - middle

    assert barrier(WSAConfig(strength=3.0, min_numel=1)) < 0.6 * barrier(None)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kind": "global", "site": ""}, "expected the upload"),
        ({"features": "other"}, "has features other"),
        ({"generator": "0" * 16}, "other weights"),
        ({"n_images": 0}, "no image"),
    ],
)
def test_uploads_that_do_not_fit_are_refused(change: dict[str, Any], reason: str) -> None:
    server = exchange()
    sent = server.site_step(sites()["a"], None, 1)
    broken = Payload(sent.manifest.model_copy(update=change), sent.arrays)
    with pytest.raises(PayloadError, match=reason):
        server.accept(broken)
    server.accept(sent)
    with pytest.raises(PayloadError, match="already answered"):
        server.accept(sent)


def test_arrays_that_do_not_fit_are_refused() -> None:
    server = exchange()
    sent = server.site_step(sites()["a"], None, 1)
    name = "weight/weight"
    for arrays in (
        {name: sent.arrays[name]},
        sent.arrays | {"more": np.zeros(1, np.float32)},
        sent.arrays | {name: sent.arrays[name][:2]},
        sent.arrays | {name: sent.arrays[name].astype(np.float64)},
        sent.arrays | {name: np.full_like(sent.arrays[name], np.nan)},
    ):
        with pytest.raises(PayloadError):
            server.accept(Payload(sent.manifest, arrays))


def test_a_site_of_another_model_or_federation_is_reported() -> None:
    server, other = exchange(), sites()["a"]
    other.trainer.student = torch.nn.Linear(3, 3)
    with pytest.raises(MismatchError):
        server.site_step(other, None, 1)
    sent = server.site_step(sites()["b"], None, 1)
    server.accept(sent)
    merged = server.merge(1)
    foreign = Payload(merged.manifest.model_copy(update={"features": "other"}), merged.arrays)
    with pytest.raises(FederationError, match="feature"):
        server.site_step(sites()["a"], foreign, 2)
    with pytest.raises(FederationError, match="nothing to merge"):
        exchange().merge(1)
    with pytest.raises(ConfigError, match="trainable part"):
        WeightExchange(features="f", initial={}, config=WeightConfig(), sites=1)
    with pytest.raises(ConfigError, match="algorithm"):
        WeightConfig("fedsgd")  # type: ignore[arg-type]


def test_only_the_sites_of_a_round_are_averaged() -> None:
    server, members = exchange(), sites()
    server.accept(server.site_step(members["a"], None, 1))
    first = server.merge(1)
    second = server.site_step(members["b"], first, 2)
    server.accept(second)
    for name, value in weights(server.merge(2)).items():
        np.testing.assert_array_equal(value, second.arrays[f"weight/{name}"])
