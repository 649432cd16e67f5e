"""The image of `packaging/`, as far as that can be checked where no image can be built."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
STEPS = re.sub(r"\\\n\s*", "", (ROOT / "packaging/Dockerfile").read_text(encoding="utf-8"))


def _copied() -> set[str]:
    """Files and folders of the repository that the image is made from."""
    lines = re.findall(r"^COPY (?:--\S+ )*(.+) \S+$", STEPS, re.MULTILINE)
    return {source for line in lines for source in line.split()}


def test_all_that_a_build_reads_is_copied() -> None:
    project, wheel = PROJECT["project"], PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    read = {"pyproject.toml", project["readme"], *project["license-files"], "src"}
    assert all(package.startswith("src/") for package in wheel["packages"])
    assert read | set(wheel["force-include"]) <= _copied()
    assert all((ROOT / source).exists() for source in _copied())


def test_what_is_installed_is_what_the_project_asks_for() -> None:
    (torch,) = re.findall(r'pip install \S+ "(torch[^"]*)"', STEPS)
    assert torch in PROJECT["project"]["dependencies"]
    (extras,) = re.findall(r'"\.\[(.*)\]"', STEPS)
    assert set(extras.split(",")) <= set(PROJECT["project"]["optional-dependencies"])
    assert f"python:3.{PROJECT['project']['requires-python'].split('.')[1]}-slim" in STEPS


def test_the_name_of_the_program_may_be_given_or_omitted(tmp_path: Path) -> None:
    program = tmp_path / "fedvad"
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o755)
    (entry,) = re.findall(r'^ENTRYPOINT \["(\S+)"\]$', STEPS, re.MULTILINE)
    for words in (["serve", "/a run"], ["fedvad", "serve", "/a run"]):
        done = subprocess.run(
            ["sh", ROOT / "packaging" / entry, *words], capture_output=True, text=True, check=True,
            env={"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        )  # fmt: skip
        assert done.stdout == "serve /a run\n"
