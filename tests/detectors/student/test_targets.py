"""What is computed once is what the networks would have given every time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedvad.data.bounds import check_pixels
from fedvad.detectors.student.branches import PaSTeNet, build_net
from fedvad.detectors.student.graphs import MapNet, Normalise
from fedvad.detectors.student.loss import combine_maps, cosine_loss, level_maps
from fedvad.detectors.student.pixels import pixels_again, read_pixels
from fedvad.detectors.student.rd.net import build_reverse
from fedvad.detectors.student.targets import TrainingSet
from fedvad.errors import ConfigError, DataError
from fedvad.features.config import Engine
from fedvad.features.engine import make_engine
from tests.conftest import MakeImages
from tests.detectors.student.test_branches import network

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 64, 64, 3), dtype=np.uint8)
NORMALISE = Normalise(torch.full((1, 3, 1, 1), 1 / 64), torch.full((1, 3, 1, 1), -2.0))


def _net(bootstrap: int) -> PaSTeNet:
    return build_net(network("test_efficientnet"), (1, 2), bootstrap=bootstrap, seed=1)


def _set(net: PaSTeNet, **options: Any) -> TrainingSet:
    made = TrainingSet(net, NORMALISE, image_size=64, capacity=len(PIXELS), **options)
    made.extend(iter(PIXELS))
    return made


@pytest.mark.parametrize(
    ("bootstrap", "engine", "budget"),
    [(-1, "torch", 0), (-1, "torch", 1 << 30), (0, "torch", 0), (0, "openvino", 1 << 30)],
)
def test_batches_equal_what_the_net_gives(bootstrap: int, engine: Engine, budget: int) -> None:
    net = _net(bootstrap)
    training = _set(net, engine=engine, budget=budget)
    assert training.on_disk == (budget == 0)
    assert len(training) == len(PIXELS)
    batch = training.batch([5, 2, 0])
    with torch.inference_mode():
        x = NORMALISE(torch.from_numpy(PIXELS[[5, 2, 0]]))
        z = net.shared(x)
        teacher, student = net.from_shared(z)
    half = {"rtol": 2e-3, "atol": 2e-3}  # what float16 keeps
    torch.testing.assert_close(batch.inputs, z, **half)
    for found, expected in zip(batch.teacher, teacher, strict=True):
        torch.testing.assert_close(found, expected, **half)
    loss = cosine_loss(batch.teacher, net.student(batch.inputs)).item()
    assert loss == pytest.approx(float(cosine_loss(teacher, student)), rel=2e-3)
    training.close()


def test_a_pass_gives_every_image_once_in_parts_of_about_the_same_size() -> None:
    training = _set(_net(0))
    # inputs as the names of the images
    name = {training.batch([i]).inputs.sum().item(): i for i in range(7)}
    assert len(name) == 7

    def order(seed: int | None) -> list[list[int]]:
        rng = None if seed is None else np.random.default_rng(seed)
        made = training.batches(np.arange(7), 3, rng)
        return [[name[one.sum().item()] for one in batch.inputs] for batch in made]

    assert order(None) == [[0, 1, 2], [3, 4], [5, 6]]
    assert sorted(sum(order(1), [])) == list(range(7))  # noqa: RUF017
    assert order(1) == order(1) != order(2)
    assert list(training.batches(np.arange(0), 3)) == []


@pytest.mark.parametrize("combine", ["product", "sum"])
def test_the_map_graph_is_the_nets_map_in_every_engine(combine: Any) -> None:
    net = _net(0).train()
    graph = MapNet(net, NORMALISE, 64, combine)
    assert graph.grid == (16, 16)
    with torch.inference_mode():
        maps = level_maps(*net.eval()(NORMALISE(torch.from_numpy(PIXELS[:2]))))
        expected = combine_maps(maps, (16, 16), combine).numpy()
    engines = {"torch": 1e-6}
    if combine == "product":  # compiling takes seconds
        engines["openvino"] = 1e-4
    for kind, tolerance in engines.items():
        engine = make_engine(graph, image_size=64, kind=kind)  # type: ignore[arg-type]
        ((_, found),) = engine.run([(0, PIXELS[:2])])
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def test_an_image_size_that_the_backbone_refuses_is_reported() -> None:
    class Picky(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError("only 224")

    net = _net(0)
    net.trunk = Picky()
    with pytest.raises(ConfigError, match="64 pixels do not fit: only 224"):
        MapNet(net, NORMALISE, 64, "sum")


def test_pixels_come_in_order_with_a_reason_for_each_that_does_not(
    make_images: MakeImages, tmp_path: Path
) -> None:
    paths = make_images(40, size=32)
    paths[3].write_bytes(b"nothing")
    found = list(read_pixels([*paths, tmp_path / "absent.png"], 16))
    assert [item.index for item in found] == list(range(41))
    bad = {item.index: item.error for item in found if item.pixels is None}
    assert bad.keys() == {3, 40}
    assert "0003.png" in str(bad[3])
    assert all(p.pixels.shape == (16, 16, 3) for p in found if p.pixels is not None)


def test_a_file_read_under_a_higher_limit_is_read_again(
    make_images: MakeImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    def huge(width: int, height: int, name: str, limit: int) -> None:
        check_pixels(1000 * width, 1000 * height, name, limit)

    monkeypatch.setattr("fedvad.data.bounds.check_pixels", huge)
    paths = make_images(1)
    assert [item.pixels for item in read_pixels(paths, 16)] == [None]
    (first,) = read_pixels(paths, 16, max_pixels=1 << 40)
    (again,) = pixels_again(paths, 16)
    np.testing.assert_array_equal(again, first.pixels)


class TestStudentsOfMaps:
    @staticmethod
    def _net() -> Any:
        return build_reverse(network("test_efficientnet"), (1, 2, 3), (1, 2), image_size=64, seed=1)

    @pytest.mark.parametrize("budget", [0, 1 << 30])
    def test_they_are_given_the_teachers_maps_and_no_pixels_are_kept(self, budget: int) -> None:
        net = self._net()
        training = _set(net, budget=budget)
        assert training.on_disk == (budget == 0)
        assert training._pixels is None
        batch = training.batch([5, 2, 0])
        assert batch.inputs is batch.teacher
        assert len(batch) == 3
        with torch.inference_mode():
            teacher, _ = net(NORMALISE(torch.from_numpy(PIXELS[[5, 2, 0]])))
        for found, expected in zip(batch.teacher, teacher, strict=True):
            torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)
        both = batch.joined(training.batch([1]))
        assert both.inputs is both.teacher
        assert len(both) == 4
        assert training.grids == [tuple(m.shape[2:]) for m in teacher]
        training.close()

    @pytest.mark.parametrize("budget", [0, 1 << 30])
    @pytest.mark.parametrize("bootstrap", [None, 0])
    def test_a_changed_teacher_is_kept_for_every_image(
        self, budget: int, bootstrap: int | None
    ) -> None:
        net = self._net() if bootstrap is None else _net(bootstrap)
        training = _set(net, budget=budget)
        before = training.batch(range(7))
        training.change_teacher(lambda maps: [2 * maps[0], maps[1] - 1])
        after = training.batch(range(7))
        half = {"rtol": 2e-3, "atol": 2e-3}
        torch.testing.assert_close(after.teacher[0], 2 * before.teacher[0], **half)
        torch.testing.assert_close(after.teacher[1], before.teacher[1] - 1, **half)
        if bootstrap is not None:
            torch.testing.assert_close(after.inputs, before.inputs, rtol=0, atol=0)
        with pytest.raises(DataError, match="float16"):
            training.change_teacher(lambda maps: [1e9 * m for m in maps])
        torch.testing.assert_close(training.batch(range(7)).teacher, after.teacher)
        assert len(training) == 7
        training.close()
