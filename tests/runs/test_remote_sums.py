"""Sums of sites on machines of their own: by file and over Flower they are those of `train`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedvad
from fedvad.deploy.changes import more_rounds
from fedvad.deploy.init import init
from fedvad.deploy.server import federate
from fedvad.deploy.settings import SiteSettings, read_server, read_site
from fedvad.deploy.site import answer, run_folder
from fedvad.errors import ConfigError
from fedvad.runs.config import resolve_config
from fedvad.runs.method_sums import SumsMethod
from fedvad.runs.sums_run import SumsRun
from fedvad.verbs.inspect import inspect
from tests.deploy.support import FakeLinks
from tests.helpers import OPTIONS
from tests.runs.test_remote_students import SITES, Files

SUMS: dict[str, Any] = OPTIONS | {"method": "sums", "dimensions": 12}


@pytest.fixture(scope="module")
def trained(plants: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> SumsRun:
    """The run in one process: what all others are compared with."""
    out = tmp_path_factory.mktemp("sums") / "run"
    fedvad.train(plants, out, cache=shared_cache, **SUMS)
    run = fedvad.load(out)
    assert isinstance(run, SumsRun)
    return run


def same(own: Any, trained: SumsRun) -> None:
    """Masks differ, and the sums do not, to the bit."""
    assert isinstance(own, SumsRun)
    np.testing.assert_array_equal(own.gaussian.mean, trained.gaussian.mean)
    np.testing.assert_array_equal(own.gaussian.scatter, trained.gaussian.scatter)
    for name, model in own.sites.items():
        assert model.thresholds == trained.sites[name].thresholds


def test_by_file(plants: Path, trained: SumsRun, tmp_path: Path) -> None:
    files = Files(tmp_path, plants, SUMS)
    for round_ in (1, 2, 3):
        given = {} if round_ == 1 else {"options": None}
        sent = [files.export(name, **given) for name in SITES]
        assert files.reported["sums"] > 0
        out = files.merge(sent)
        assert sorted(files.reported["accepted"]) == sorted(SITES)
        for name in SITES:
            more = {"out": tmp_path / f"run-{name}"} if round_ == 3 else {}
            files.take(name, out, **more)
    for name in SITES:
        same(fedvad.load(tmp_path / f"run-{name}"), trained)
    says = " ".join(inspect(tmp_path / "alder.fedvad")["says"])
    assert "numbers: sums over 6 normal images" in says
    assert "CAUTION" not in says


def test_over_flower(plants: Path, trained: SumsRun, tmp_path: Path) -> None:
    init(tmp_path / "dep", ["localhost"], SITES)
    reported = "\n".join(f"{key} = {json.dumps(value)}" for key, value in SUMS.items())
    (tmp_path / "dep/server/federation.toml").write_text(reported + "\n")

    def settings(name: str) -> SiteSettings:
        return read_site(tmp_path / "dep/sites" / name, data=plants / name)

    links = FakeLinks({n: lambda i, n=n: answer(settings(n), i) for n in SITES})  # type: ignore[misc]
    server = read_server(tmp_path / "dep").model_copy(update={"deadline": 20.0})
    result = federate(server, "run", links, clock=links.clock)
    found = json.loads((result / "results.json").read_text())
    assert found["missing"] == {}
    assert "scores" not in json.dumps(found["finished"])  # nothing but sums leaves a site
    for name in SITES:
        same(fedvad.load(run_folder(settings(name), found["federation"])), trained)
    same(fedvad.load(result), trained)  # a server has all that scores
    with pytest.raises(ConfigError, match="take 3 rounds"):
        more_rounds(server, "run", 1)
    assert federate(server, "run", links, clock=links.clock) == result


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"rounds": 2}, "take 3 rounds"),
        ({"defence": "robust"}, "no defence"),
        ({"participation": 0.5}, "every site in every round"),
        ({"join": {"alder": 2}}, "every site in every round"),
        ({"epsilon": 1.0, "threshold_rule": "federated"}, "would reveal more"),
        ({"epsilon": 1.0, "shared_threshold": True}, "would reveal more"),
    ],
)
def test_what_sums_cannot_do_is_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        SumsMethod.check_remote(resolve_config(method="sums", **options))


def test_the_guarantee_is_in_the_results(plants: Path, shared_cache: Path, tmp_path: Path) -> None:
    found = fedvad.train(plants, tmp_path / "run", cache=shared_cache, epsilon=2.0, **SUMS)
    assert found["privacy"]["epsilon"] == 2.0
    assert "in whose place is another" in found["privacy"]["neighbours"]
