"""`distill`: from a recipe to a backbone file, with checkpoints, loss curve and model card."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fedvad._version import __version__
from fedvad.data.files import write_atomically
from fedvad.data.locks import only_one
from fedvad.data.sealed import read_table
from fedvad.detectors.student.branches import reinitialise
from fedvad.detectors.student.cost import macs
from fedvad.detectors.student.graphs import normalise_of
from fedvad.distillation.fold import fold_heads
from fedvad.distillation.inherit import inherit
from fedvad.distillation.stages import MaskedStage, StepLog, seed_of
from fedvad.distillation.teacher import Teacher
from fedvad.errors import ConfigError
from fedvad.experiments.distill.checkpoint import (
    CHECKPOINT_FILE,
    COLUMNS,
    Journal,
    read_checkpoint,
    write_checkpoint,
)
from fedvad.experiments.distill.images import FRESH, TrainingImages
from fedvad.experiments.distill.recipe import Recipe, StageOptions, load_recipe
from fedvad.experiments.store import Cell
from fedvad.features.architecture import Architecture
from fedvad.features.backbone_file import BackboneFile, write_backbone
from fedvad.features.backbones import Backbone, build_backbone
from fedvad.features.names import brings_weights
from fedvad.features.tiny import TinyNet
from fedvad.report.model_card import model_card
from fedvad.report.plots import plot_losses
from fedvad.report.tables import write_csv
from fedvad.runs.arguments import AnyPath, by_backbone, paths_of
from fedvad.runs.config import as_path
from fedvad.runs.guards import guard_output_file, guard_plain_folder
from fedvad.runs.progress import Progress, no_progress
from fedvad.runs.run_folder import write_json

__all__ = ["BACKBONE_FILE", "distill_backbone"]

log = logging.getLogger(__name__)

BACKBONE_FILE = "backbone.safetensors"
_RESULTS = "distill.json"
# what a teacher of ImageNet takes, so that a student that begins with its weights takes the same
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_FRESH_IMAGES = 64
_LOOKED_AT = 256
_COST_SIZE = 256


def distill_backbone(
    recipe: AnyPath | Recipe,
    out: AnyPath,
    *,
    data: AnyPath | Iterable[AnyPath] = (),
    weights: Mapping[str, AnyPath] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """`fedvad distill`: train a small backbone to give the features of larger ones.

    The resulting file is accepted wherever a backbone is. A checkpoint is kept every `checkpoint`
    steps of the recipe and after every stage; `resume` continues from it to the same file.

    Parameters
    ----------
    recipe : str, path or Recipe
        Shipped name, TOML file, or what `load_recipe` read.
    out : path
        Folder of the file and its progress.
    data : path, or several, default=()
        Folders of images; a recipe may draw its own.
    weights : mapping of str to path, optional
        A file by the teacher's name.
    resume : bool, default=False
        Continue an interrupted training in `out`.
    progress : callable, optional
        Called with a stage, the steps done and their number.

    Returns
    -------
    dict
        What was trained, and where the file is.

    Raises
    ------
    ConfigError, DataError, WeightsError, StorageError
        See `fedvad.errors`.

    Examples
    --------
    About an hour:

    >>> import fedvad
    >>> fedvad.distill_backbone(
    ...     "tiny", "tiny", weights={"resnet18": "resnet18.safetensors"}
    ... )  # doctest: +SKIP
    """
    progress = progress or no_progress
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    out, folders, files = as_path(out, "out"), paths_of(data, "data"), by_backbone(weights)
    with only_one(out):
        if not resume and any((out / name).exists() for name in (CHECKPOINT_FILE, BACKBONE_FILE)):
            raise ConfigError(
                f"{out} already holds a distillation: choose another --out, remove it, or continue "
                "with --resume"
            )
        guard_plain_folder(out, "--out", folders)
        for name in (BACKBONE_FILE, CHECKPOINT_FILE):  # with --resume one of them may be there
            guard_output_file(out / name, "--out", others=files.values())
        images = TrainingImages(chosen.images, folders, size=chosen.image_size, seed=chosen.seed)
        choice = chosen.student
        architecture = Architecture.of(choice.backbone, choice.layers, dict(choice.options))
        student = architecture.build()
        reinitialise(student, chosen.seed)
        # all of them now, so that a missing file is reported before hours of work
        teachers = [_backbone(stage, files, chosen.image_size) for stage in chosen.stages]
        checkpoint = Cell(out / CHECKPOINT_FILE, _identity(chosen, images, teachers))
        identity = checkpoint.identity
        if resume and not (out / CHECKPOINT_FILE).exists() and (out / BACKBONE_FILE).exists():
            return _finished(out, identity)
        journal, done = Journal(), 0
        arrays: dict[str, npt.NDArray[Any]] = {}
        if resume:
            journal, done, arrays = read_checkpoint(checkpoint)
        elif choice.start == "teacher":
            _take_over(student, teachers[0], images, chosen)
        running: MaskedStage | None = None
        first = 0
        for number, (options, teacher) in enumerate(zip(chosen.stages, teachers, strict=True)):
            if number >= journal.stage:
                journal.stage = number
                running = _stage(chosen, number, student, teacher, images, first)
                if arrays:
                    running.restore(arrays, done)
                    arrays = {}
                _train(running, journal, checkpoint, chosen, progress)
            first += options.steps * options.batch
        assert running is not None  # a recipe has a stage, and the last one always runs
        summary = _export(chosen, architecture, running, journal, identity, out)
        checkpoint.remove()
        return summary


def _backbone(stage: StageOptions, weights: Mapping[str, Path], side: int) -> Backbone:
    name = stage.teacher
    own = weights.get(name)
    if own is None and not brings_weights(name):
        own = weights.get("")
    return build_backbone(name, weights=own, layers=stage.layers, image_size=side)


def _take_over(
    student: torch.nn.Module, teacher: Backbone, images: TrainingImages, recipe: Recipe
) -> None:
    assert isinstance(student, TinyNet)  # as the recipe asks
    if (teacher.mean, teacher.std) != (_MEAN, _STD):
        raise ConfigError(
            f"{teacher.name} normalises images in its own way, so that no student can take over "
            'its weights: set start = "random"'
        )
    count = _LOOKED_AT if images.count is None else min(_LOOKED_AT, images.count)
    pixels = torch.from_numpy(np.stack([images(n) for n in range(count)]))
    explained = inherit(
        student, teacher.network, normalise_of(_MEAN, _STD)(pixels), seed=recipe.seed
    )
    log.info("taken over from %s, by block: %s", teacher.name, np.round(explained, 3).tolist())


def _identity(
    recipe: Recipe, images: TrainingImages, teachers: Sequence[Backbone]
) -> dict[str, Any]:
    """What a continued training must agree in."""
    return {
        "version": __version__,
        **recipe.model_dump(mode="json", exclude={"checkpoint"}),
        "data": images.described(),
        "teachers": [{"hash": t.weights_hash, "layers": list(t.layers)} for t in teachers],
    }


def _stage(
    recipe: Recipe,
    number: int,
    student: torch.nn.Module,
    backbone: Backbone,
    images: TrainingImages,
    first: int,
) -> MaskedStage:
    teacher = Teacher(
        backbone, image_size=recipe.image_size, engine=recipe.engine, device=recipe.device
    )
    return MaskedStage(
        student,
        teacher,
        images,
        recipe.stages[number],
        normalise=normalise_of(_MEAN, _STD),
        # another 31 bits per stage: NumPy and PyTorch both take them
        seed=seed_of(recipe.seed, number) >> 32,
        first=first,
        device=recipe.device,
    )


def _train(
    stage: MaskedStage,
    journal: Journal,
    checkpoint: Cell,
    recipe: Recipe,
    progress: Progress,
) -> None:
    name = f"stage {journal.stage + 1}: {recipe.stages[journal.stage].teacher}"
    progress(name, stage.done, stage.config.steps)

    def on_step(log: StepLog) -> None:
        journal.add(log)
        progress(name, log.step, stage.config.steps)
        if log.step % recipe.checkpoint == 0 and log.step < stage.config.steps:
            write_checkpoint(checkpoint, stage, journal)

    stage.run(on_step)
    write_checkpoint(checkpoint, stage, journal)
    numbers = np.arange(FRESH, FRESH + _FRESH_IMAGES)
    del journal.fidelity[journal.stage :]
    journal.fidelity.append(stage.fidelity(stage.images, numbers))


def _export(
    recipe: Recipe,
    architecture: Architecture,
    stage: MaskedStage,
    journal: Journal,
    identity: dict[str, Any],
    out: Path,
) -> dict[str, Any]:
    network = stage.student.cpu().eval()
    if recipe.student.head == "teacher":
        architecture, network = fold_heads(architecture, network, stage.heads)
    blank = torch.zeros(1, 3, _COST_SIZE, _COST_SIZE)
    with torch.inference_mode():
        maps = network(blank)
    file = BackboneFile(recipe.name, architecture, network, _MEAN, _STD)
    origin = {"recipe": recipe.name, "seed": recipe.seed, "data": identity["data"]}
    size = write_backbone(out / BACKBONE_FILE, file, origin)
    # as everyone will read it, values rounded
    made = build_backbone(str(out / BACKBONE_FILE))
    summary = {
        "name": recipe.name,
        "version": __version__,
        "recipe": recipe.model_dump(mode="json"),
        "identity": identity,
        "images": identity["data"],
        "teachers": [
            {"name": options.teacher, **described}
            for options, described in zip(recipe.stages, identity["teachers"], strict=True)
        ],
        "stages": _summaries(recipe, journal),
        "backbone": {
            "file": BACKBONE_FILE,
            "hash": made.weights_hash,
            "architecture": architecture.values(),
            "parameters": sum(p.numel() for p in network.parameters()),
            "bytes": size,
            "macs": macs(network, blank),
            "macs_image_size": _COST_SIZE,
            "taps": [
                {"layer": layer, "stride": _COST_SIZE // int(m.shape[2]), "channels": m.shape[1]}
                for layer, m in zip(architecture.layers, maps, strict=True)
            ],
        },
    }
    write_csv([list(COLUMNS), *([*map(_cell, row)] for row in journal.rows)], out / "loss.csv")
    write_atomically(out / "loss.png", plot_losses(journal.rows, COLUMNS))
    write_atomically(out / "card.md", model_card(summary).encode())
    write_json(out / _RESULTS, summary)
    return summary


def _summaries(recipe: Recipe, journal: Journal) -> list[dict[str, Any]]:
    """Per stage: mean loss over the first and the last twentieth of its steps, and fidelity."""
    found = []
    for number, (options, levels) in enumerate(zip(recipe.stages, journal.fidelity, strict=True)):
        losses = [row[2] for row in journal.rows if row[0] == number + 1]
        part = max(1, len(losses) // 20)
        found.append(
            {
                "teacher": options.teacher,
                "steps": len(losses),
                "loss_first": float(np.mean(losses[:part])),
                "loss_last": float(np.mean(losses[-part:])),
                "levels": levels,
            }
        )
    return found


def _cell(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.9g}"


def _finished(out: Path, identity: dict[str, Any]) -> dict[str, Any]:
    summary, _ = read_table(out / _RESULTS)
    if summary.get("identity") != identity:
        raise ConfigError(f"{out} holds a finished distillation of another recipe or other images")
    return summary
