"""A few of the run's own pictures, for whoever has no image at hand."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

from fedvad.errors import ArtefactError
from fedvad.report.html.gallery import GALLERY_FOLDER, sample_name
from fedvad.report.html.record import Gallery

log = logging.getLogger(__name__)
_LARGEST = 300_000  # bytes; ours are about 6 kB, exact copies up to 200 kB


@dataclass(frozen=True)
class Sample:
    """A WebP copy of a test image; `defect` is "good" or the name of its kind.

    Of a small image an exact one, which scores as the image did.
    """

    name: str
    site: str
    defect: str
    webp: bytes


def load_samples(run: Path, site: str | None = None, *, limit: int = 12) -> list[Sample]:
    """Pictures of the run's gallery, normal and defective ones in turn, of `site` if it has any.

    Empty where the run keeps no gallery; a damaged one is logged and counts as none.
    """
    try:
        gallery = Gallery.read(run)
    except ArtefactError as error:
        log.warning("no samples: %s", error)
        return []
    pictures = [] if gallery is None else gallery.pictures
    pictures = [p for p in pictures if p.site == site] or pictures
    by_label = [[p for p in pictures if p.label == label] for label in (0, 1)]
    samples: list[Sample] = []
    for picture in chain.from_iterable(zip_longest(*by_label)):
        if picture is None or len(samples) == limit:
            continue
        path = run / GALLERY_FOLDER / sample_name(picture.photo)
        if not path.is_file():
            path = run / GALLERY_FOLDER / picture.photo
        try:
            if path.stat().st_size > _LARGEST:
                continue
            data = path.read_bytes()
        except OSError:
            continue
        samples.append(Sample(picture.file, picture.site, picture.defect, data))
    return samples
