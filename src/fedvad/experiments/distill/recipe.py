"""What `fedvad distill` does: a student, images and stages, from a TOML file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    ConfigDict,
    Field,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from fedvad.data.bounds import MAX_PIXELS
from fedvad.data.checked import Closed
from fedvad.distillation.options import Distance
from fedvad.distillation.stages import StageConfig
from fedvad.errors import ConfigError
from fedvad.experiments.experiment import Named, read_experiment, with_defaults
from fedvad.features.config import Engine
from fedvad.runs.arguments import AnyPath


class StudentChoice(Closed):
    """The network that learns.

    backbone: `tiny`, `mcunet_in3`, `mcunet_in4`, or any timm model. options: `stem`, `widths`,
    `inner` and `depths` of tiny. start: `random`, or `teacher`: tiny takes over what fits into it
    of the first teacher, a ResNet of basic blocks, see `inherit`. head: `teacher` puts a 1 x 1
    convolution after each tap by which distances between features are those between the aligned
    features, and so the last teacher's; `none` leaves the taps as they are.
    """

    backbone: str = "tiny"
    layers: tuple[int, ...] | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    start: Literal["random", "teacher"] = "random"
    head: Literal["teacher", "none"] = "teacher"


class ImageOptions(Closed):
    """Where images come from.

    procedural: share of drawn images, in addition to those of --data; without --data all are
    drawn. limit: this many images, which repeat, their teachers' maps kept; None: every image is a
    new one (another drawing, another crop). crop: smallest share of a file's area that is cut out.
    max_pixels: a file of more is skipped. licences: of the folders given, by folder name; they go
    into the model card. good, defect: names of folders with normal images and with defects in
    these, beyond `good`.
    """

    procedural: float = Field(default=0.5, ge=0, le=1)
    limit: int | None = Field(default=None, ge=1)
    crop: float = Field(default=0.3, gt=0, le=1)
    max_pixels: int = Field(default=MAX_PIXELS, ge=1)
    licences: dict[str, str] = Field(default_factory=dict)
    good: tuple[str, ...] = ()
    defect: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StageOptions(StageConfig):
    """One stage: a teacher, and the options of its training."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    teacher: str
    layers: tuple[int, ...] | None = None
    steps: int = 10_000
    distance: Distance = "mse"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.teacher:
            raise ConfigError("a stage needs a teacher")


def _numbered(values: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Let pydantic say in which stage something is wrong."""
    try:
        return check(values)
    except ConfigError as error:
        raise ValueError(str(error)) from error


class Recipe(Named):
    """Student, images and stages.

    seed: of everything that is drawn. checkpoint: steps between checkpoints. engine, device: of
    the teachers; on a GPU also of the student.
    """

    kind: ClassVar[str] = "recipe"
    package: ClassVar[str] = "fedvad.experiments.distill"

    seed: int = Field(default=0, ge=0, lt=2**31)
    image_size: int = Field(default=160, ge=32, le=1024)
    engine: Engine = "openvino"
    device: str = "cpu"
    checkpoint: int = Field(default=500, ge=1)
    student: StudentChoice = StudentChoice()
    images: ImageOptions = ImageOptions()
    stages: tuple[Annotated[StageOptions, WrapValidator(_numbered)], ...] = Field(min_length=1)

    @field_validator("name")
    @classmethod
    def _plain(cls, value: str) -> str:
        if not value.isprintable() or len(value) > 80:
            raise ValueError("a name has at most 80 printable characters")
        return value

    @model_validator(mode="after")
    def _can_take_over(self) -> Self:
        if self.student.start == "teacher" and self.student.backbone != "tiny":
            raise ValueError('start = "teacher" is for the student tiny; others begin at random')
        return self

    @model_validator(mode="after")
    def _scale_is_learned(self) -> Self:
        if self.student.head == "teacher" and self.stages[-1].distance != "mse":
            raise ValueError(
                'head = "teacher" needs distance = "mse" in the last stage: cosines leave open how '
                'large features are; or set head = "none"'
            )
        return self


def load_recipe(name: AnyPath) -> Recipe:
    """A shipped recipe by name, or one from a TOML file.

    In a file, `[defaults]` holds values for every stage, whose own keys go before. Raises
    `ConfigError` naming the file, the key and the mend.
    """
    return read_experiment(Recipe, name, with_defaults("stages"))
