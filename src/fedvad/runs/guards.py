"""What each verb must not write over, checked before it works; see `data.outputs`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from fedvad.data.folders import Site
from fedvad.data.outputs import guard_file, guard_folder, holding_folders, real
from fedvad.errors import ConfigError

_RUN_NAMES = ("results.json", "ledger.json", "scores.json", "report.html", "heatmaps.png")
_RUN_PARTS = frozenset({".json", ".safetensors", ".webp"})


def guard_output_file(
    target: Path | None,
    option: str,
    *,
    run: Path | None = None,
    data: Path | None = None,
    sites: Sequence[Site] = (),
    others: Iterable[Path | None] = (),
    own: bytes = b"",
) -> None:
    """Raise `ConfigError` when a file to write is one that is read, or lies among the images.

    run: a run folder, whose own parts are read. data, sites: the data folder and its sites.
    others: further files that are read. own: see `guard_file`. A target of None passes.
    """
    if target is None:
        return
    images = _files(sites)
    reads = [*(path for path in others if path is not None), *_parts(run), *images]
    folders = () if data is None else holding_folders([data], images)
    guard_file(target, option, reads=reads, folders=folders, own=own)


def guard_output_folder(out: Path, option: str, *, data: Path, sites: Sequence[Site]) -> None:
    """Raise `ConfigError` when a run folder to write holds or leads to the images.

    So does one without a run that has files of the user's by the names that a run would write.
    """
    guard_folder(out, option, folders=holding_folders([data], _files(sites)))
    foreign = [name for name in _RUN_NAMES if (out / name).exists()]
    if foreign and not (out / "config.json").exists():
        what = (
            "a run without config.json: restore that from a copy, or"
            if _is_run(out)
            else f"{foreign[0]}, which would be overwritten, and no run:"
        )
        raise ConfigError(f"{option} {out} holds {what} choose another folder")


def guard_plain_folder(out: Path, option: str, data: Iterable[Path]) -> None:
    """Raise `ConfigError` when `out` is a data folder or lies in one; nothing is listed."""
    place = real(out)
    for folder in data:
        if real(folder) in (place, *place.parents):
            raise ConfigError(
                f"{option} {out} lies in the data folder {folder}, where its files could be read "
                "as images: choose a place outside"
            )


def check_order(run: Path, others: Iterable[object], usage: str) -> None:
    """Raise `ConfigError` when `run` is no run folder and one of `others` is: they were swapped."""
    if _is_run(run):
        return
    swapped = next((path for path in others if isinstance(path, Path) and _is_run(path)), None)
    if swapped is not None:
        raise ConfigError(
            f"{run} is not a run folder, and {swapped} is one: the order is fedvad {usage}"
        )


def guard_run_folder(out: Path | None, option: str) -> None:
    """Raise `ConfigError` when `out` is a run folder; None passes."""
    if out is not None and (_is_run(out) or (out / "state").is_dir()):
        raise ConfigError(
            f"{option} {out} is a run folder: choose a folder for the pictures alone, for example "
            f"{out}-pictures"
        )


def _is_run(folder: Path) -> bool:
    return (folder / "detector.safetensors").exists()


def _files(sites: Sequence[Site]) -> list[Path]:
    items = [item for site in sites for item in (*site.train, *site.test)]
    return [item.path for item in items] + [item.mask for item in items if item.mask is not None]


def _parts(run: Path | None) -> list[Path]:
    if run is None or not run.is_dir():
        return []
    folders = [run, *(run / name for name in ("state", "gallery") if (run / name).is_dir())]
    return [
        path
        for folder in folders
        for path in folder.glob("*" if folder == run else "**/*")
        if path.suffix in _RUN_PARTS and path.is_file()
    ]
