"""Attacks do what they say: the tests of the defence rest on them."""

from __future__ import annotations

import numpy as np
import pytest

from fedvad.errors import ConfigError
from fedvad.federation.payload import Payload, bank_from
from tests.attacks import (
    overclaimed,
    random_noise,
    replayed,
    scaled,
    sybils,
    taught_defect,
)
from tests.helpers import make_bank, upload

SENT = upload(bank=make_bank(20))
DEFECT = np.full((30, 6), 7.0, np.float32)


def _vectors(payload: Payload) -> np.ndarray:
    return bank_from(payload).vectors


@pytest.mark.parametrize(("share", "rows"), [(0.05, 1), (0.25, 5), (1.0, 20)])
def test_a_taught_defect_replaces_its_share_of_rows(share: float, rows: int) -> None:
    taught = taught_defect(SENT, DEFECT, share=share, seed=1)
    changed = (_vectors(taught) == 7).all(1)
    assert changed.sum() == rows
    np.testing.assert_array_equal(_vectors(taught)[~changed], _vectors(SENT)[~changed])
    np.testing.assert_array_equal(taught.arrays["weights"], SENT.arrays["weights"])
    again = taught_defect(SENT, DEFECT, share=share, seed=1)
    assert again.to_bytes() == taught.to_bytes()


@pytest.mark.parametrize(("share", "defect"), [(0.0, DEFECT), (1.5, DEFECT), (0.5, DEFECT[:9])])
def test_more_than_there_is_cannot_be_taught(share: float, defect: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="cannot be of"):
        taught_defect(SENT, defect, share=share, seed=0)


def test_noise_has_the_moments_of_what_it_replaces() -> None:
    sent = upload(bank=make_bank(4000))
    noise = _vectors(random_noise(sent, seed=3))
    np.testing.assert_allclose(noise.mean(0), _vectors(sent).mean(0), atol=0.1)
    np.testing.assert_allclose(noise.std(0), _vectors(sent).std(0), rtol=0.1)
    assert not (noise == _vectors(sent)).any(1).all()


def test_scaled_rows_are_longer() -> None:
    np.testing.assert_allclose(_vectors(scaled(SENT, 4.0)), 4 * _vectors(SENT), rtol=1e-3)


def test_sybils_are_one_upload_under_many_names() -> None:
    copies = sybils(SENT, ["x", "y"], jitter=0.01, seed=0)
    assert [c.manifest.site for c in copies] == ["x", "y"]
    first, second = (_vectors(c) for c in copies)
    assert 0 < np.abs(first - second).max() < 0.2
    np.testing.assert_allclose(first, _vectors(SENT), atol=0.2)


def test_what_a_manifest_claims_can_be_forged() -> None:
    assert replayed(SENT, 5).manifest.round == 5
    assert overclaimed(SENT, 10**12).manifest.n_patches == 10**12
    np.testing.assert_array_equal(_vectors(replayed(SENT, 5)), _vectors(SENT))
