"""What a run folder shows of its images: pages, pictures and tables, whatever their names."""

from __future__ import annotations

import shutil
from pathlib import Path

from fedvad.data.outputs import OWN_PNG
from fedvad.report.audit_sheet import TITLE
from fedvad.runs.run_folder import EARLIER_THRESHOLDS_FILE, REGION_FILE

# what a training and a calibration leave that shows or measures images of all its sites
_SHOWS = (
    "results.json", "scores.json", "report.html", "heatmaps.png", "gallery.json", "gallery",
    "tables", EARLIER_THRESHOLDS_FILE,
)  # fmt: skip
# what a page or picture of ours holds, whatever its name
_MARKS = {".pdf": TITLE.encode(), ".html": b"<title>fedvad report", ".png": OWN_PNG}


def remove_shown(folder: Path) -> list[str]:
    """Remove what shows or measures images of a run; returns the names of what was there."""
    removed = []
    found = sorted(path.name for path in folder.iterdir() if _shows(path))
    for name in dict.fromkeys([*_SHOWS, *found]):
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        elif path.exists():
            path.unlink()
        else:
            continue
        removed.append(name)
    return removed


def _shows(path: Path) -> bool:
    """Whether a file is a page or a picture that fedvad made of the run."""
    mark = _MARKS.get(path.suffix.lower())
    if mark is None or not path.is_file() or path.name == REGION_FILE:
        return False
    return mark in path.read_bytes()
