"""`fedvad gallery`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from fedvad.cli import flags
from fedvad.cli.common import exit_with_json, showing
from fedvad.data.bounds import MAX_PIXELS
from fedvad.features.names import IMAGE_SIZE


def gallery(
    data: Annotated[Path, typer.Argument(help="Folder of sites, or one set.")],
    out: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("gallery.png"),
    kinds: Annotated[
        str | None, typer.Option(help="Kinds of defects, separated by commas [default: all]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of images and defects.")] = 0,
    rows: Annotated[int, typer.Option(min=1, help="Rows of two images per kind.")] = 2,
    foreground: Annotated[
        str, typer.Option(help="Where the object is: none, otsu, or a grey level 0 to 254.")
    ] = "none",
    textures: Annotated[
        Path | None, typer.Option(help="Folder of images to fill textures with.")
    ] = None,
    image_size: Annotated[
        int, typer.Option(min=16, help="Side of the images in pixels.")
    ] = IMAGE_SIZE,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Pixels of an image at most; larger ones are refused.")
    ] = MAX_PIXELS,
    good: flags.Good = None,
    defect: flags.Defect = None,
    as_json: flags.Json = False,
) -> None:
    """Draw synthetic defects on your normal images, to see what a detector would learn from."""
    from fedvad.data.synthesis import KINDS
    from fedvad.verbs.gallery import gallery as run_gallery

    where = int(foreground) if foreground.isdecimal() else foreground
    with showing() as progress:
        drawn = run_gallery(
            data,
            out,
            kinds=kinds or KINDS,
            seed=seed,
            rows=rows,
            foreground=cast(Any, where),
            textures=textures,
            image_size=image_size,
            max_pixels=max_pixels,
            good=good or (),
            defect=defect or (),
            progress=progress,
        )
    exit_with_json(as_json, drawn)
    replaced = sum(defect["kind"] != defect["drawn"] for defect in drawn["defects"])
    shown = f"{len(drawn['defects'])} defects" + (
        f", {replaced} of them spots, since nothing of their kind would be seen" if replaced else ""
    )
    typer.echo(f"{drawn['path']} ({drawn['bytes'] / 1e6:.1f} MB, {shown})")
