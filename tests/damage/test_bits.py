"""One flipped bit in any file that is kept: it is noticed, or the result is the same to the bit."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedvad
from fedvad.errors import ArtefactError, PayloadError
from fedvad.features.cache import DescriptorCache, content_key
from fedvad.federation.ledger import Ledger, RoundEntry
from fedvad.federation.mailboxes.state import RunState, load_state, save_state
from fedvad.federation.signed import SignedMessage, generate_keys, read_private_key
from fedvad.memory.bank import MemoryBank
from fedvad.runs.memory_run import TrainedRun
from fedvad.runs.run_folder import (
    read_config,
    read_ledger,
    read_results,
    write_ledger,
)
from tests.damage.flips import FLIPS, flipped
from tests.helpers import OPTIONS, make_bank, upload

Trained = tuple[Path, dict[str, Any]]
FILES = ("config.json", "detector.safetensors", "ledger.json", "results.json")


@pytest.fixture
def run(trained: Trained, tmp_path: Path) -> Path:
    """A copy of a finished run, to be damaged."""
    target = tmp_path / "run"
    target.mkdir()
    for name in FILES:
        shutil.copy(trained[0] / name, target)
    return target


def _noticed(read: Callable[[], Any], expected: Any) -> bool:
    """Whether damage was noticed; if not, what was read must be what was written."""
    try:
        found = read()
    except ArtefactError:
        return True
    assert found == expected
    return False


def test_every_flip_in_a_detector_is_noticed(run: Path) -> None:
    noticed = [
        _noticed(lambda: TrainedRun.load(run), None) for _ in flipped(run / "detector.safetensors")
    ]
    assert noticed == [True] * FLIPS
    assert set(TrainedRun.load(run).sites) == {"alder", "birch", "cedar"}


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("config.json", read_config),
        ("ledger.json", read_ledger),
        ("results.json", read_results),
    ],
)
def test_a_flip_in_a_json_file_is_noticed_or_changes_nothing(
    name: str, read: Callable[[Path], Any], run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = read(run)
    noticed = []
    for _ in flipped(run / name):
        caplog.clear()
        try:
            found = read(run)
        except ArtefactError:
            noticed.append(True)
            continue
        warned = "was changed after it was written" in caplog.text
        assert warned or found == good
        noticed.append(warned)
    # a space that became another kind of space, the name of the digest
    assert sum(noticed) > 0.9 * FLIPS
    assert len(noticed) == FLIPS


def test_every_flip_in_a_cache_entry_is_noticed(tmp_path: Path) -> None:
    cache = DescriptorCache(tmp_path)
    values = np.random.default_rng(0).standard_normal((4, 5, 8)).astype(np.float16)
    key = content_key(b"image")
    cache.put("conf", key, values)
    (path,) = tmp_path.rglob("*.npy")
    count = sum(cache.get("conf", key) is None for _ in flipped(path))
    assert count == FLIPS
    np.testing.assert_array_equal(cache.get("conf", key), values)


def _state(round_: int) -> RunState:
    banks = {"a": make_bank(3), "b": make_bank(4, seed=2), "never drawn": MemoryBank.empty(6)}
    sites = {
        name: {"vectors": bank.vectors, "weights": bank.weights, "spread": bank.spread}
        for name, bank in banks.items()
    }
    merged = upload(kind="global", site="", round_=round_)
    server = {name: upload(name, round_) for name in "ab"}
    return RunState(round_, merged, server, sites, Ledger(images={"a": "x"}))


def _comparable(state: RunState | None) -> Any:
    assert state is not None
    sites = {n: {k: v.tobytes() for k, v in a.items()} for n, a in state.sites.items()}
    server = {name: payload.to_bytes() for name, payload in state.server.items()}
    return state.round, state.merged.to_bytes(), server, sites, state.ledger


@pytest.mark.parametrize(
    "name",
    ["complete.json", "global.safetensors", "server-0001.safetensors", "site-0000.safetensors"],
)
def test_a_flip_in_a_state_is_noticed_or_changes_nothing(name: str, tmp_path: Path) -> None:
    save_state(tmp_path, _state(2))
    good = _comparable(load_state(tmp_path))
    noticed = [
        _noticed(lambda: _comparable(load_state(tmp_path)), good)
        for _ in flipped(tmp_path / "round-0002" / name)
    ]
    assert sum(noticed) == FLIPS if name.endswith("safetensors") else sum(noticed) > 0.9 * FLIPS


def test_every_flip_in_a_signed_file_is_noticed(tmp_path: Path) -> None:
    private, _, public = generate_keys(tmp_path, "a")
    path = tmp_path / "upload.fedvad"
    path.write_bytes(read_private_key(private).sign(upload("a").to_bytes()))
    trusted = {public: "a"}
    assert SignedMessage.parse(path.read_bytes()).check(trusted) == "a"
    count = 0
    for _ in flipped(path):
        with pytest.raises(PayloadError):
            SignedMessage.parse(path.read_bytes()).check(trusted)
        count += 1
    assert count == FLIPS


def test_a_changed_result_is_not_handed_out_by_resume(
    run: Path, trained: Trained, plants: Path, shared_cache: Path
) -> None:
    assert read_results(run) == trained[1]
    text = (run / "results.json").read_text()
    (run / "results.json").write_text(text.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(ArtefactError, match=r"results\.json was damaged or changed"):
        fedvad.train(
            plants, run, cache=shared_cache, resume=True, compare="local,pooled,identity", **OPTIONS
        )
    with pytest.raises(ArtefactError, match=r"results\.json was damaged or changed"):
        fedvad.write_report(run)


def test_a_damaged_ledger_is_no_empty_ledger(run: Path, plants: Path, shared_cache: Path) -> None:
    for text in ("", "[]", '{"rounds": NaN}', "{" * 5000, '{"rounds": [], "rounds": []}'):
        (run / "ledger.json").write_text(text)
        with pytest.raises(ArtefactError, match=r"ledger\.json"):
            fedvad.evaluate(run, plants, cache=shared_cache)


ODD = {
    "nested deeply": "[" * 100_000,
    "nested a little too deeply": '{"a": ' + "[" * 70 + "]" * 70 + "}",
    "NaN": '{"seed": NaN}',
    "infinite": '{"seed": -Infinity}',
    "beyond floats": '{"smooth": 1e999}',
    "a key twice": '{"seed": 0, "seed": 1}',
    "an endless integer": '{"seed": ' + "9" * 5000 + "}",
    "a long integer": '{"seed": ' + "9" * 45 + "}",
    "a list": "[]",
    "null": "null",
    "nothing": "",
    "UTF-16": '{"seed": 0}',
}


@pytest.mark.parametrize("name", ["config.json", "ledger.json", "results.json"])
@pytest.mark.parametrize("text", ODD.values(), ids=ODD.keys())
def test_odd_json_is_an_artefact_error(name: str, text: str, run: Path) -> None:
    (run / name).write_bytes(text.encode("utf-16" if text == ODD["UTF-16"] else "utf-8"))
    with pytest.raises(ArtefactError, match=name.replace(".", r"\.")) as caught:
        {"config.json": read_config, "ledger.json": read_ledger, "results.json": read_results}[
            name
        ](run)
    assert len(str(caught.value)) < 500


def test_what_a_person_changed_is_a_warning(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = (run / "config.json").read_text().replace('"seed": 0', '"seed": 5')
    (run / "config.json").write_text(text)
    assert read_config(run).seed == 5
    assert "config.json was changed after it was written" in caplog.text
    caplog.clear()
    values = json.loads(text)
    del values["digest"]
    (run / "config.json").write_text(json.dumps(values))
    assert read_config(run).seed == 5
    assert "was changed" not in caplog.text
    results = (run / "results.json").read_text().replace("feddymem", "patchcore")
    (run / "results.json").write_text(results)
    with pytest.raises(ArtefactError, match="damaged or changed"):
        read_results(run)


def test_a_run_is_whole_at_every_moment_of_its_training(
    plants: Path, shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader between any two writes sees no run, or a whole one; never half of a file."""
    out, replace, seen = tmp_path / "run", Path.replace, []

    def look(self: Path, target: Path) -> Path:
        done = replace(self, target)
        if out in target.parents:
            try:
                seen.append(set(TrainedRun.load(out).sites))
                read_config(out)
                read_ledger(out)
            except ArtefactError as error:
                seen.append(str(error))
        return done

    monkeypatch.setattr(Path, "replace", look)
    fedvad.train(plants, out, cache=shared_cache, **OPTIONS)
    sites = {"alder", "birch", "cedar"}
    first = seen.index(sites)
    assert all("detector.safetensors" in reason for reason in seen[:first])
    assert all(found == sites for found in seen[first:])
    assert len(seen) > first + 5 > 10


def test_a_ledger_of_numbers_that_json_lacks_comes_back(tmp_path: Path) -> None:
    entry = RoundEntry(
        round=1, sites=["a"], bytes_up={}, bytes_down={}, rows_up={}, memory_rows=1,
        coverage=math.inf,
    )  # fmt: skip
    write_ledger(tmp_path, Ledger(rounds=[entry]))
    assert math.isnan(read_ledger(tmp_path).rounds[0].coverage)
