"""The command line: exit codes, one JSON document on standard output, and interruptions."""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import fedvad
from fedvad.runs.opening import known_site
from tests.helpers import FLAGS, OPTIONS, SIZE, run_main, upload
from tests.verbs.test_train import SITES, check_shape

Run = tuple[Path, dict[str, Any]]
Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def _environment(monkeypatch: Patch, shared_cache: Path) -> None:
    monkeypatch.setenv("FEDVAD_CACHE", str(shared_cache))
    monkeypatch.setenv("COLUMNS", "200")


def _one_document(text: str) -> Any:
    """Exactly one line that is JSON."""
    assert text.endswith("\n")
    assert text.count("\n") == 1
    return json.loads(text)


# the command, but its server stops in the middle of round {round}, until a signal comes
_HANGING = """
import sys, time
from fedvad.cli.main import main
from fedvad.federation.exchange.memory import MemoryExchange
merge = MemoryExchange.merge
def hanging(self, round_, *more):
    if round_ == {round}:
        print("hanging", file=sys.stderr, flush=True)
        time.sleep(600)
    return merge(self, round_, *more)
MemoryExchange.merge = hanging
main()
"""


def _spawn_hanging(round_: int, *arguments: object) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        # a background job of a shell inherits that SIGINT is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        args=[sys.executable, "-c", _HANGING.format(round=round_), "--quiet", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


class TestTrain:
    def test_json_is_one_document_and_progress_is_silent(
        self, plants: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
    ) -> None:
        out = tmp_path / "run"
        flags = (*FLAGS, "--compare", "local", "--json")
        assert run_main(monkeypatch, "train", plants, "--out", out, *flags) == 0
        captured = capsys.readouterr()
        assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in captured.err.splitlines())
        results = _one_document(captured.out)
        check_shape(results, SITES, main=True)
        assert results == json.loads((out / "results.json").read_text())

    def test_without_weights_it_works_and_says_which_backbone_it_used(
        self, plants: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
    ) -> None:
        arguments = ("train", plants, "--out", tmp_path / "run", "--image-size", 64, "--rounds", 1)
        assert run_main(monkeypatch, *arguments) == 0
        assert "Backbone: fedvad-tiny" in capsys.readouterr().out

    def test_every_flag_reaches_the_configuration(
        self, plants: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
    ) -> None:
        monkeypatch.setattr("fedvad.verbs.outputs.contact_sheet", lambda *a, **k: None)
        (tmp_path / "c.toml").write_text("smooth = 1\nseed = 8\n")
        code = run_main(
            monkeypatch, "train", plants, "--out", tmp_path / "run", *FLAGS, "--config",
            tmp_path / "c.toml", "--method", "feddymem", "--layers", "0,2", "--rounds", 3,
            "--upload-bytes", 9000, "--merge", "kcenter", "--memory-rows", 90,
            "--participation", 0.9, "--join", "cedar:2", "--join", "birch:2", "--reference",
            "union", "--map", "cfa", "--search", "exact", "--target-fpr", 0.05, "--seed", 3,
            "--jobs", 2, "--max-bad", 0.2, "--max-pixels", 5000, "--cache-size", "1G",
        )  # fmt: skip
        assert code == 0
        shown = capsys.readouterr().out
        assert "image AUROC" in shown
        assert str(tmp_path / "run") in shown
        assert "heatmaps.png" not in shown  # none was written
        config = json.loads((tmp_path / "run" / "config.json").read_text())
        expected = {
            "layers": [0, 2], "rounds": 3, "upload_bytes": 9000, "merge": "kcenter",
            "memory_rows": 90, "participation": 0.9, "join": {"cedar": 2, "birch": 2},
            "reference": "union", "map": "cfa", "search": "exact", "target_fpr": 0.05, "seed": 3,
            "jobs": 2, "max_bad": 0.2, "max_pixels": 5000, "smooth": 1, "image_size": 64,
            "engine": "torch",
        }  # fmt: skip
        assert {key: config[key] for key in expected} == expected


class TestEvaluate:
    @pytest.mark.parametrize("reference", [(), ("--reference", "local")])
    def test_json(
        self,
        reference: tuple[str, ...],
        trained: Run,
        plants: Path,
        monkeypatch: Patch,
        capsys: Capture,
    ) -> None:
        assert run_main(monkeypatch, "evaluate", trained[0], plants, *reference, "--json") == 0
        captured = capsys.readouterr()
        assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in captured.err.splitlines())
        results = _one_document(captured.out)
        check_shape(results, SITES, main=True)
        expected = trained[1]["compare"]["local"] if reference else trained[1]
        assert results["image_auroc"] == expected["image_auroc"]

    def test_tables(
        self, trained: Run, plants: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
    ) -> None:
        sheet = tmp_path / "sheet.png"
        assert run_main(monkeypatch, "evaluate", trained[0], plants, "--heatmaps", sheet) == 0
        assert "alder" in capsys.readouterr().out
        assert sheet.is_file()


class TestPredict:
    @pytest.fixture
    def images(self, plants: Path, tmp_path: Path) -> Path:
        folder = tmp_path / "images"
        shutil.copytree(plants / "alder" / "test" / "good", folder)
        (folder / "000a broken.png").write_bytes(b"\x89PNG")
        return folder

    def test_json_is_one_object_per_line_also_for_unreadable_files(
        self, trained: Run, images: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
    ) -> None:
        code = run_main(
            monkeypatch, "predict", trained[0], images, "--site", "alder", "--out",
            tmp_path / "out", "--json",
        )  # fmt: skip
        captured = capsys.readouterr()
        assert code == 3
        assert "1 image could not be scored" in captured.err
        rows = [json.loads(line) for line in captured.out.splitlines()]
        assert [Path(row["path"]).name for row in rows] == [
            "000.png", "000a broken.png", "001.png", "002.png",
        ]  # fmt: skip
        assert [row["error"] is None for row in rows] == [True, False, True, True]
        for row in rows:
            assert (row["overlay"] is None) == (row["score"] is None)

    def test_lines_for_people(
        self, trained: Run, images: Path, monkeypatch: Patch, capsys: Capture
    ) -> None:
        assert run_main(monkeypatch, "predict", trained[0], images / "000.png") == 0
        first, last = capsys.readouterr().out.splitlines()
        assert "000.png" in first
        assert last == f"{first.count('ANOMALOUS')} of 1 stopped"
        assert run_main(monkeypatch, "predict", trained[0], images, "--threshold", "1e-6") == 3
        *lines, last = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines].count("unreadable") == 1
        assert last == "3 of 4 stopped, 1 unreadable"

    def test_pages_of_one_file_are_images(
        self, trained: Run, images: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
    ) -> None:
        pages = [Image.open(images / f"00{i}.png") for i in range(3)]
        pages[0].save(tmp_path / "s.tif", save_all=True, append_images=pages[1:])
        options = ("--out", tmp_path / "out", "--json")
        assert run_main(monkeypatch, "predict", trained[0], tmp_path / "s.tif", *options) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [Path(row["path"]).name for row in rows] == ["s.tif#1", "s.tif#2", "s.tif#3"]
        assert len({row["overlay"] for row in rows}) == 3
        singly = [images / f"00{i}.png" for i in range(3)]
        assert run_main(monkeypatch, "predict", trained[0], *singly, "--json") == 0
        alone = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [row["score"] for row in rows] == [row["score"] for row in alone]
        assert (
            run_main(monkeypatch, "predict", trained[0], f"{tmp_path / 's.tif'}#2", "--json") == 0
        )
        assert json.loads(capsys.readouterr().out)["score"] == rows[1]["score"]

    def test_the_limit_on_pixels_is_an_option(
        self, trained: Run, images: Path, plants: Path, monkeypatch: Patch, capsys: Capture
    ) -> None:
        image, low = images / "000.png", ("--max-pixels", SIZE * SIZE - 1)
        assert run_main(monkeypatch, "predict", trained[0], image, *low) == 3
        assert "or raise the limit (--max-pixels" in capsys.readouterr().out
        assert run_main(monkeypatch, "predict", trained[0], image, low[0], SIZE * SIZE) == 0
        capsys.readouterr()
        assert run_main(monkeypatch, "evaluate", trained[0], plants, *low, "--cache",
                        images / "cache") == 3  # fmt: skip
        assert "--max-pixels" in capsys.readouterr().err

    def test_a_file_name_in_no_encoding(
        self, trained: Run, plants: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
    ) -> None:
        name = tmp_path / os.fsdecode(b"bad\xff[b].png")
        try:
            shutil.copy(plants / "alder/test/good/000.png", name)
        except OSError:
            pytest.skip("this file system takes Unicode only")
        assert run_main(monkeypatch, "predict", trained[0], name) == 0
        assert "bad\\udcff[b].png" in capsys.readouterr().out


class TestInspect:
    def test_json(self, trained: Run, monkeypatch: Patch, capsys: Capture) -> None:
        assert run_main(monkeypatch, "inspect", trained[0], "--json") == 0
        assert _one_document(capsys.readouterr().out) == fedvad.inspect(trained[0])

    def test_tables_of_a_message_with_an_odd_name(
        self, tmp_path: Path, monkeypatch: Patch, capsys: Capture
    ) -> None:
        file = tmp_path / "[red] a [bold].msg"
        file.write_bytes(upload("Werk [1]").to_bytes())
        assert run_main(monkeypatch, "inspect", file) == 0
        shown = capsys.readouterr().out
        assert "[red] a [bold].msg" in shown
        assert "Werk [1]" in shown
        assert "9 × 6" in shown


class TestDemo:
    def test_a_foreign_folder(self, tmp_path: Path, monkeypatch: Patch, capsys: Capture) -> None:
        (tmp_path / "mine").touch()
        assert run_main(monkeypatch, "demo", "--out", tmp_path, "--json") == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "not an earlier demo" in captured.err


class TestCache:
    def test_info_and_clear(
        self, plants: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
    ) -> None:
        from fedvad.features.cache import DescriptorCache
        from fedvad.features.config import FeatureConfig
        from fedvad.features.extractor import FeatureExtractor

        extractor = FeatureExtractor(FeatureConfig(**OPTIONS), DescriptorCache(tmp_path))
        list(extractor.stream(sorted((plants / "alder/test/good").glob("*.png"))))
        assert run_main(monkeypatch, "cache", "info", "--cache", tmp_path, "--json") == 0
        reported = _one_document(capsys.readouterr().out)
        assert reported["entries"] == 3
        assert reported["bytes"] > 3 * 256 * 72 * 2
        assert run_main(monkeypatch, "cache", "info", "--cache", tmp_path) == 0
        assert "3 entries" in capsys.readouterr().out
        assert run_main(monkeypatch, "cache", "clear", "--cache", tmp_path) == 0
        assert run_main(monkeypatch, "cache", "info", "--cache", tmp_path, "--json") == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["entries"] == 0
        assert run_main(monkeypatch, "cache", "info", "--cache-size", "much") == 2


class TestExitCodes:
    """0 ok, 2 usage or configuration, 3 data, 4 federation, 130 interrupted."""

    def test_ok(self, monkeypatch: Patch, capsys: Capture) -> None:
        assert run_main(monkeypatch, "--version") == 0
        assert fedvad.__version__ in capsys.readouterr().out
        assert run_main(monkeypatch, "--help") == 0
        shown = capsys.readouterr().out
        assert "Exit codes" in shown
        for verb in ("demo", "train", "evaluate", "predict", "inspect", "cache"):
            assert verb in shown

    @pytest.mark.parametrize(
        ("flags", "named"),
        [
            (("--rounds", "0"), "rounds"),
            (("--rounds", "x"), "rounds"),
            (("--method", "fedavg"), "fedavg"),
            (("--layers", "7"), "7"),
            (("--layers", "a,b"), "layers"),
            (("--join", "alder"), "SITE:ROUND"),
            (("--join", "alder:²"), "SITE:ROUND"),
            (("--join", "oak:2"), "oak"),
            (("--split", "iid:2"), "already holds 3 sites"),
            (("--split", "even:2"), "even:2"),
            (("--config", "none.toml"), "none.toml"),
            (("--cache-size", "lots"), "lots"),
            (("--image-size", "3"), "image size must lie in 32..2048 pixels, got 3"),
            (("--weights", "none.safetensors"), "--weights"),
            (("--unknown",), "unknown"),
        ],
    )
    def test_usage(
        self,
        flags: tuple[str, ...],
        named: str,
        plants: Path,
        tmp_path: Path,
        monkeypatch: Patch,
        capsys: Capture,
    ) -> None:
        out = tmp_path / "run"
        assert run_main(monkeypatch, "train", plants, "--out", out, *FLAGS, "--json", *flags) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert named in captured.err
        assert "Traceback" not in captured.err
        assert not out.exists()

    def test_an_unknown_key_of_a_file(
        self, plants: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
    ) -> None:
        (tmp_path / "c.toml").write_text("round = 3\n")
        flags = ("--config", tmp_path / "c.toml")
        assert run_main(monkeypatch, "train", plants, "--out", tmp_path / "run", *flags) == 2
        assert "unknown configuration key 'round'" in capsys.readouterr().err

    def test_an_occupied_folder(
        self, trained: Run, plants: Path, monkeypatch: Patch, capsys: Capture
    ) -> None:
        assert run_main(monkeypatch, "train", plants, "--out", trained[0], *FLAGS) == 2
        assert "already holds a run" in capsys.readouterr().err

    def test_other_verbs_usage(self, trained: Run, plants: Path, monkeypatch: Patch) -> None:
        image = plants / "alder/test/good/000.png"
        assert run_main(monkeypatch, "evaluate", trained[0], plants, "--reference", "all") == 2
        assert run_main(monkeypatch, "predict", trained[0], image, "--site", "oak") == 2
        assert run_main(monkeypatch, "predict", trained[0]) == 2
        assert run_main(monkeypatch) == 2

    def test_data(
        self, trained: Run, plants: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
    ) -> None:
        out = tmp_path / "run"
        assert run_main(monkeypatch, "train", tmp_path / "no", "--out", out, *FLAGS) == 3
        assert "no such folder" in capsys.readouterr().err
        (tmp_path / "empty").mkdir()
        assert run_main(monkeypatch, "train", tmp_path / "empty", "--out", out, *FLAGS) == 3
        assert "no image set found" in capsys.readouterr().err
        assert run_main(monkeypatch, "evaluate", tmp_path / "empty", plants) == 3
        assert run_main(monkeypatch, "evaluate", trained[0], tmp_path / "empty") == 3
        assert run_main(monkeypatch, "predict", trained[0], tmp_path / "no.png") == 3
        (tmp_path / "junk").write_bytes(b"junk")
        assert run_main(monkeypatch, "inspect", tmp_path / "junk") == 3
        assert "Traceback" not in capsys.readouterr().err

    def test_a_full_disk(
        self, plants: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
    ) -> None:
        out = tmp_path / "run"

        def full(fd: int) -> None:
            if (out / "state" / "round-0002" / "complete.json").exists():
                raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", full)
            assert run_main(patch, "train", plants, "--out", out, *FLAGS, "--json") == 3
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "No space left on device" in captured.err
        assert "--resume" in captured.err
        assert (out / "state").is_dir()
        again = ("train", plants, "--out", out, *FLAGS, "--json", "--resume")
        assert run_main(monkeypatch, *again) == 0

    def test_federation(
        self, plants: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
    ) -> None:
        joins = [part for site in sorted(SITES) for part in ("--join", f"{site}:2")]
        out = tmp_path / "run"
        assert run_main(monkeypatch, "train", plants, "--out", out, *FLAGS, *joins) == 4
        assert "no site has answered" in capsys.readouterr().err

    def test_interrupted(
        self, plants: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
    ) -> None:
        def interrupt(*arguments: object, **options: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("fedvad.runs.phases.run_rounds", interrupt)
        at_exit: list[object] = []
        monkeypatch.setattr("atexit.register", at_exit.append)
        assert run_main(monkeypatch, "train", plants, "--out", tmp_path / "r", *FLAGS) == 130
        assert "--resume" in capsys.readouterr().err
        assert gc.freeze in at_exit  # or the interpreter takes a second and more to end


def _wait_until_it_hangs(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    assert any(line == "hanging\n" for line in process.stderr)


@pytest.mark.slow
def test_interrupt_and_kill_lose_at_most_the_round_in_flight(
    plants: Path, shared_cache: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    """SIGINT, --resume, kill -9, --resume: the memory of an uninterrupted run, bit for bit."""
    rounds, out = 4, tmp_path / "run"
    train = ("train", plants, "--out", out, *FLAGS, "--rounds", rounds, "--upload-bytes", 4096)
    process = _spawn_hanging(2, *train)
    _wait_until_it_hangs(process)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert output == ""
    assert "--resume" in errors
    assert "Traceback" not in errors
    assert [p.name for p in out.glob("state/round-*")] == ["round-0001"]

    process = _spawn_hanging(3, *train, "--resume")
    _wait_until_it_hangs(process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL

    options: dict[str, Any] = {"cache": shared_cache, "rounds": rounds, "upload_bytes": 4096}
    results = fedvad.train(plants, out, resume=True, **options, **OPTIONS)
    assert results["ledger"]["rounds"] == rounds
    assert not (out / "state").exists()
    fedvad.train(plants, tmp_path / "whole", **options, **OPTIONS)
    whole = (tmp_path / "whole" / "detector.safetensors").read_bytes()
    assert (out / "detector.safetensors").read_bytes() == whole


def test_help_and_import_do_not_load_the_heavy_libraries() -> None:
    code = (
        "import sys, fedvad, fedvad.cli.main; "
        "print([m for m in ('torch', 'timm', 'openvino', 'sklearn', 'scipy', 'matplotlib')"
        " if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"


def test_waiting_threads_sleep_unless_asked_otherwise(monkeypatch: Patch) -> None:
    for given, kept in ((None, "passive"), ("active", "active")):
        if given is None:
            monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
        else:
            monkeypatch.setenv("OMP_WAIT_POLICY", given)
        assert run_main(monkeypatch, "train", "") == 2
        assert os.environ["OMP_WAIT_POLICY"] == kept


def test_progress_on_a_terminal_goes_to_standard_error(
    trained: Run, plants: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert run_main(monkeypatch, "evaluate", trained[0], plants, "--json") == 0
    captured = capsys.readouterr()
    _one_document(captured.out)
    assert "scoring" in captured.err


def test_an_empty_argument_is_never_the_folder_one_is_in(
    monkeypatch: Patch, capsys: Capture, trained: Run, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (SIZE, SIZE)).save("a.png")
    for arguments in (("predict", trained[0], ""), ("train", tmp_path, "--out", "")):
        assert run_main(monkeypatch, *arguments) == 2
        assert "an argument is empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    with pytest.raises(fedvad.errors.ConfigError, match="out is ''"):
        fedvad.train(tmp_path, "")


def test_a_site_is_known_by_its_name_in_any_locale(
    trained: Run,
) -> None:
    run = fedvad.load(trained[0])
    run.sites["Wörth"] = run.sites.pop("alder")
    assert known_site(run, os.fsencode("Wörth").decode("ascii", "surrogateescape")) == "Wörth"
    with pytest.raises(fedvad.errors.ConfigError, match="no site"):
        known_site(run, b"\xff".decode("ascii", "surrogateescape"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
def test_closed_and_full_outputs_and_a_folder_that_is_gone(
    monkeypatch: Patch, capsys: Capture, trained: Run, tmp_path: Path
) -> None:
    Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "a.png")
    arguments = ("predict", trained[0], tmp_path / "a.png", "--site", "alder")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", None)
        assert run_main(monkeypatch, *arguments) == 0
    assert "a.png" in capsys.readouterr().out
    full = Path("/dev/full").open("w")  # noqa: SIM115 - it cannot be closed without an error
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        assert run_main(monkeypatch, *arguments) == 3
    with pytest.raises(OSError, match="No space"):
        full.close()
    assert "No space left on device: the output is not complete" in capsys.readouterr().err
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert run_main(monkeypatch, *arguments) == 2
    assert "is not there any more" in capsys.readouterr().err
