"""Masked distillation's heads: pairs, shapes, terms, invariance, and what folding keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fedvad.distillation.fold import fold_heads, metric_root
from fedvad.distillation.masked import Level, MaskedHeads, distance, pair_levels, semantic_loss
from fedvad.distillation.options import Grid, MaskedConfig
from fedvad.errors import ConfigError, DataError
from fedvad.features.architecture import Architecture

TEACHER = [(12, 8, 8), (20, 4, 4)]
STUDENT = [(6, 8, 8), (5, 4, 4)]
CONFIG = MaskedConfig(distance="mse", hidden=4)


def _maps(shapes: list[tuple[int, int, int]], batch: int = 3, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, *shape, generator=generator) for shape in shapes]


def _terms(config: MaskedConfig, batch: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(0)  # of the heads' weights
    heads = MaskedHeads(TEACHER, STUDENT, config)
    teacher, student = _maps(TEACHER, batch), _maps(STUDENT, batch, 1)
    heads.calibrate(teacher, student)
    return heads.losses(teacher, student, torch.Generator().manual_seed(3))


def test_levels_pair_by_the_nearest_stride() -> None:
    student = [(1, 32, 32), (1, 16, 16), (1, 8, 8)]
    assert pair_levels([(9, 16, 16), (9, 8, 8)], student) == [1, 2]
    assert pair_levels([(9, 64, 64), (9, 15, 15), (9, 2, 2)], student) == [0, 1, 2]
    assert pair_levels([(9, 8, 8)], [(1, 4, 4), (1, 16, 16)]) == [1]  # the finer of two


@pytest.mark.parametrize("grid", ["teacher", "student", "min"])
@pytest.mark.parametrize("teacher", [[(7, 9, 9), (3, 5, 5)], [(64, 8, 8), (2, 4, 4)]])
def test_any_channels_and_grids_go_together(
    grid: Grid, teacher: list[tuple[int, int, int]]
) -> None:
    config = replace(CONFIG, grid=grid)
    heads = MaskedHeads(teacher, STUDENT, config)
    terms = heads.losses(_maps(teacher), _maps(STUDENT, seed=1))
    total = heads.total(terms)
    total.backward()
    assert torch.isfinite(total)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in heads.parameters())
    for found, t, s in zip(heads.aligned(_maps(STUDENT)), teacher, STUDENT, strict=True):
        side = {"teacher": t[1], "student": s[1], "min": min(t[1], s[1])}[grid]
        assert found.shape == (3, t[0], side, side)


def test_means_of_neighbours_are_compared_where_asked_for() -> None:
    # stripes of mean 0 over 3 x 3 cells; what the border adds is counted by hand
    stripes = torch.tensor([1.0, -1.0, 0.0] * 3).expand(1, 1, 9, 9).clone()
    heads = MaskedHeads([(1, 9, 9)], [(1, 9, 9)], replace(CONFIG, pool=3, w_m=0.0, w_sem=0.0))
    for name, parameter in heads.named_parameters():
        if "aligner" in name:
            torch.nn.init.constant_(parameter, float(name.endswith("weight")))
    found = heads.losses([torch.zeros_like(stripes)], [stripes])["plain"].item()
    inner, outer = 7, 2 * (2 / 3) ** 2  # rows with three and with two rows of cells around them
    last = (-1 + 0) / 3  # the last column; that of the first one is (1 - 1) / 3
    assert found == pytest.approx((inner + outer) * last**2 / 81)


def test_a_tap_without_a_pair_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"taps \[0\] of the student"):
        MaskedHeads([(12, 4, 4)], STUDENT, CONFIG)


def test_semantic_loss_ignores_scale_and_shift_of_channels() -> None:
    found, wanted = _maps(TEACHER[:1])[0], _maps(TEACHER[:1], seed=1)[0]
    scale = torch.linspace(0.3, 40, 12).view(1, 12, 1, 1)
    shift = torch.linspace(-5, 5, 12).view(1, 12, 1, 1)
    base = semantic_loss(found, wanted)
    torch.testing.assert_close(semantic_loss(found, wanted * scale + shift), base)
    torch.testing.assert_close(semantic_loss(found * scale - shift, wanted), base)
    flat = torch.corrcoef(torch.stack([found[:, 0].flatten(), wanted[:, 0].flatten()]))[0, 1]
    one = semantic_loss(found[:, :1], wanted[:, :1])
    torch.testing.assert_close(one, 2 * (1 - flat), rtol=1e-4, atol=1e-4)
    assert float(semantic_loss(wanted, wanted)) < 1e-9
    assert float(semantic_loss(wanted, wanted, "sample")) < 1e-9


@pytest.mark.parametrize("kind", ["cosine", "mse"])
def test_one_image_of_one_position_is_finite(kind: str) -> None:
    shapes = [(4, 1, 1)]
    heads = MaskedHeads(shapes, [(3, 1, 1)], replace(CONFIG, distance=kind))  # type: ignore[arg-type]
    teacher = [torch.zeros(1, 4, 1, 1)]
    student = torch.zeros(1, 3, 1, 1, requires_grad=True)
    heads.calibrate(teacher, [student])
    total = heads.total(heads.losses(teacher, [student]))
    total.backward()
    assert torch.isfinite(total)
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_the_switches_of_the_ablations_do_what_they_say() -> None:
    plain = _terms(replace(CONFIG, rho_s=0.0, rho_c=0.0, generator=False))
    torch.testing.assert_close(plain["masked"], plain["plain"])
    masked = _terms(replace(CONFIG, generator=False))
    assert not torch.equal(masked["masked"], masked["plain"])
    random = _terms(replace(CONFIG, generator=False, mode="random"))
    assert not torch.equal(random["masked"], masked["masked"])
    heads = MaskedHeads(TEACHER, STUDENT, replace(CONFIG, w_m=0.0, w_sem=0.0))
    terms = {name: torch.tensor(value) for name, value in
             {"masked": 3.0, "plain": 5.0, "semantic": 7.0}.items()}  # fmt: skip
    assert float(heads.total(terms)) == 5.0
    assert not [n for n, _ in MaskedHeads(TEACHER, STUDENT, replace(CONFIG, generator=False))
                .named_parameters() if "generators" in n]  # fmt: skip


def test_losses_are_means_that_do_not_grow_with_the_batch() -> None:
    one, two = _maps(TEACHER, 1), [m.repeat(6, 1, 1, 1) for m in _maps(TEACHER, 1)]
    student = _maps(STUDENT, 1, 1)
    heads = MaskedHeads(TEACHER, STUDENT, CONFIG)
    first = heads.losses(one, student)
    second = heads.losses(two, [m.repeat(6, 1, 1, 1) for m in student])
    for name, value in first.items():
        torch.testing.assert_close(second[name], value)


def test_mse_is_in_units_of_the_teachers_spread() -> None:
    heads = MaskedHeads(TEACHER, STUDENT, CONFIG)
    teacher = [m * 7 + 3 for m in _maps(TEACHER, 50)]
    heads.calibrate(teacher, _maps(STUDENT, 50))
    level = heads.levels[0]
    assert isinstance(level, Level)
    found = level.target(teacher[0])
    torch.testing.assert_close(found.mean((0, 2, 3)), torch.zeros(12), atol=1e-4, rtol=0)
    assert float(found.square().mean()) == pytest.approx(1, abs=1e-3)
    # an aligner that says nothing is as wrong as the mean: 1
    assert float(distance(torch.zeros_like(found), found, "mse")) == pytest.approx(1, abs=1e-3)
    with pytest.raises(DataError, match="not finite"):
        heads.calibrate([m * torch.inf for m in teacher], _maps(STUDENT, 50))


@pytest.mark.parametrize("change", [
    {"rho_s": 1.0}, {"rho_c": -0.1}, {"temperature": 0.0}, {"hidden": 0}, {"w_a": 0.0},
    {"w_m": -1.0},
    {"pool": 2},
])  # fmt: skip
def test_impossible_options_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        replace(CONFIG, **change)  # type: ignore[arg-type]


def test_folded_heads_keep_the_distances_of_the_aligned_features() -> None:
    matrix = torch.randn(20, 5, generator=torch.Generator().manual_seed(5))
    points = torch.randn(9, 5, generator=torch.Generator().manual_seed(6))
    for m in (matrix, matrix[:3]):  # also fewer channels than the student has
        root = metric_root(m)
        assert root.shape == (5, 5)
        torch.testing.assert_close(
            torch.cdist(points @ root.T, points @ root.T),
            torch.cdist(points @ m.T, points @ m.T), atol=1e-4, rtol=1e-4,
        )  # fmt: skip
    architecture = Architecture.of(
        "tiny", (1, 2), {"stem": 4, "widths": [4, 6, 8], "inner": [4] * 3, "depths": [1] * 3}
    )
    student = architecture.build().eval()
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        before = student(image)
    heads = MaskedHeads(TEACHER, [(6, 8, 8), (8, 4, 4)], CONFIG)
    heads.calibrate(_maps(TEACHER, 2), before)
    folded, network = fold_heads(architecture, student, heads)
    assert folded.heads == (6, 8)
    with torch.no_grad():
        after = network(image)
    for found, raw, (level, _) in zip(after, before, heads.paired(), strict=True):
        aligned = level.aligned(raw) * level.spread
        a, b = (m.permute(0, 2, 3, 1).flatten(0, 2).detach() for m in (found, aligned))
        torch.testing.assert_close(torch.cdist(a, a), torch.cdist(b, b), atol=1e-3, rtol=1e-3)


def test_masks_that_adapt_hide_other_cells_and_leave_the_plain_term() -> None:
    plain = _terms(replace(CONFIG, enhance=0.0))
    adapted = _terms(replace(CONFIG, enhance=2.0))
    torch.testing.assert_close(adapted["plain"], plain["plain"])
    assert not torch.equal(adapted["masked"], plain["masked"])
    with pytest.raises(ConfigError, match="enhance"):
        MaskedConfig(enhance=-1.0)
