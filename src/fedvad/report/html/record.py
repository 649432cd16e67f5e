"""What a run keeps so that its page can be made again without the data: scores and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, model_validator

from fedvad.data.checked import Closed, parse_values
from fedvad.data.sealed import read_sealed, write_sealed
from fedvad.errors import ArtefactError

SCORES_FILE = "scores.json"
GALLERY_FILE = "gallery.json"

Finite = Annotated[float, Field(allow_inf_nan=False)]
Label = Annotated[int, Field(ge=0, le=1)]
# pictures are looked up by these names: no path can lead out of the run folder
PictureName = Annotated[str, Field(pattern=r"^[0-9]{4,6}-(photo|heat)\.webp$")]


class SiteScores(Closed):
    """One site's scored test images: lists of one length. Flagged is score > threshold.

    files: names without their folders. compared: scores of other methods on the same images.
    """

    files: list[str]
    defects: list[str]
    labels: list[Label]
    scores: list[Finite]
    threshold: Finite | None
    compared: dict[str, list[Finite]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        lengths = {len(self.defects), len(self.labels), len(self.scores), len(self.files)}
        if len(lengths | {len(scores) for scores in self.compared.values()}) > 1:
            raise ValueError("its lists are of different lengths")
        return self


class Scores(Closed):
    """The scores of all test images, by site."""

    schema_version: Literal[1] = 1
    sites: dict[str, SiteScores] = Field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Store in a run folder; raises `StorageError`."""
        write_sealed(folder / SCORES_FILE, self.model_dump(mode="json"))

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The scores of a run, None where it keeps none; raises `ArtefactError` when damaged."""
        return _read(cls, folder / SCORES_FILE)


class Picture(Closed):
    """One image of the gallery: small files `photo` and `heat`, both width x height pixels."""

    site: str
    file: str
    defect: str
    label: Label
    score: Finite
    threshold: Finite | None
    outlined: bool
    photo: PictureName
    heat: PictureName
    width: int = Field(ge=1, le=4096)
    height: int = Field(ge=1, le=4096)


class Gallery(Closed):
    """The pictures of a run in the order in which they are shown.

    tested: scored test images, chosen from. unreadable: chosen ones that could not be drawn.
    """

    schema_version: Literal[1] = 1
    tested: int = Field(default=0, ge=0)
    unreadable: int = Field(default=0, ge=0)
    pictures: list[Picture] = Field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Store in a run folder; raises `StorageError`."""
        write_sealed(folder / GALLERY_FILE, self.model_dump(mode="json"))

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The gallery of a run, None where it keeps none; raises `ArtefactError` when damaged."""
        return _read(cls, folder / GALLERY_FILE)


def printable(text: str) -> str:
    """A name that any file can hold and any reader show: what is no character becomes "\ufffd".

    File names need not be valid in any encoding, and may hold what turns the text around them.
    """
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


_Kind = TypeVar("_Kind", bound=Closed)


def _read(kind: type[_Kind], path: Path) -> _Kind | None:
    try:
        return parse_values(kind, read_sealed(path), path) if path.exists() else None
    except ArtefactError as error:
        raise ArtefactError(
            f"{path.name} is damaged; remove it to make a report without it. {error}"
        ) from error
