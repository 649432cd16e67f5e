"""The layouts of data sets that are read directly: one line each, tried in this order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedvad.data.labels import LabelNames
from fedvad.data.layouts.kolektor import is_sdd, is_sdd2, read_sdd, read_sdd2
from fedvad.data.layouts.listed import is_real_iad, read_real_iad
from fedvad.data.layouts.plain import is_br35h, is_plain, read_br35h, read_plain
from fedvad.data.layouts.split import is_split, read_split
from fedvad.data.layouts.visa import is_visa, read_visa
from fedvad.data.listing import Folder
from fedvad.data.reading import SiteReading

__all__ = ["LAYOUTS", "Layout", "layout_of"]


@dataclass(frozen=True)
class Layout:
    """A way to lay out one set: how it is known, and how it is read."""

    detect: Callable[[Folder, LabelNames], bool]
    read: Callable[[Folder, str, LabelNames], SiteReading]


LAYOUTS = (
    Layout(is_sdd2, read_sdd2),
    Layout(is_split, read_split),
    Layout(is_visa, read_visa),
    Layout(is_real_iad, read_real_iad),
    Layout(is_sdd, read_sdd),
    Layout(is_br35h, read_br35h),
    Layout(is_plain, read_plain),
)


def layout_of(folder: Folder, names: LabelNames) -> Layout | None:
    """The layout that a folder is in; None when it is no set of any."""
    return next((layout for layout in LAYOUTS if layout.detect(folder, names)), None)
