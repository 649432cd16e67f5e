"""`fedvad spectral`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import typer

from fedvad.cli import flags
from fedvad.cli.common import exit_with_json, numbers, showing
from fedvad.cli.options import key_values


def spectral(
    scenes: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="SCENE...",
            help="Hyperspectral scenes: .mat, .npz, .npy, ENVI .hdr, .tif with a band on each "
            "page, or a folder of images as bands.",
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="Detector: rx, line-rx, lrx, crd, rpca, rpca-rx, lrasr, auto-ad, dsformer "
            "or hypersigma."
        ),
    ] = "rx",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for a picture and a map of each scene, and a table."),
    ] = None,
    mask: Annotated[
        list[Path] | None,
        typer.Option(
            help="Ground truth in place of that in the file: an image, .mat, .npz or .npy. Once "
            "per scene, in their order."
        ),
    ] = None,
    moments: Annotated[
        list[Path] | None,
        typer.Option(
            help="Score by the merged moments in these files (one per site) in place of the "
            "scene's own, with rx. May be repeated."
        ),
    ] = None,
    save_moments: Annotated[
        Path | None,
        typer.Option(
            help="Write count, mean and scatter of the pixels of all scenes here, for other sites."
        ),
    ] = None,
    save_backbone: Annotated[
        Path | None,
        typer.Option(
            help="Write weights for fedvad train --backbone spectral here: of the pixels in "
            "--moments, else of those of the scenes."
        ),
    ] = None,
    windows: Annotated[
        str | None,
        typer.Option(
            metavar="OUTER,INNER",
            help="Sides of the ring around a pixel, odd [default: lrx 17,9, crd 17,15]",
        ),
    ] = None,
    border: Annotated[
        str | None,
        typer.Option(
            help="What lies beyond the edge, for lrx and crd: wrap, mirror or shift [default: wrap]"
        ),
    ] = None,
    components: Annotated[
        int | None,
        typer.Option(
            help="Principal components kept by lrx, dsformer and hypersigma [default: 10, 20, 20]"
        ),
    ] = None,
    ridge: Annotated[
        float | None,
        typer.Option(
            help="Value added to the diagonal of a covariance, in units of its mean; for crd the "
            "weight of its cost [default: the detector's]"
        ),
    ] = None,
    norm: Annotated[
        str | None,
        typer.Option(
            help="Scaling for crd, rpca and lrasr: global_minmax, band_minmax, band_std or none "
            "[default: global_minmax]"
        ),
    ] = None,
    channels: Annotated[
        int | None, typer.Option(help="Width of auto-ad's network [default: 128]")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Most steps of auto-ad, rpca, rpca-rx and lrasr [default: 1001, 200, 200, 115]"
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="Size of the network: of hypersigma tiny, base, large or huge [default: tiny]; of "
            "dsformer [default: small] and with --classes [default: paper] small or paper"
        ),
    ] = None,
    spatial_weights: Annotated[
        Path | None,
        typer.Option(
            help="Published weights of hypersigma's spatial branch, of the same --size, in "
            "safetensors format."
        ),
    ] = None,
    spectral_weights: Annotated[
        Path | None, typer.Option(help="The same for its spectral branch.")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Seed of the networks' weights and training, and of lrasr's clusters [default: 0]"
        ),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            help="In place of odd pixels: learn classes of pixels by DSFormer from this file (a "
            "grey image, .mat, .npz or .npy of one scene; 0 is unknown), and name those of all."
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Passes of the training of hypersigma, dsformer and with --classes [default: 5, "
            "30, 500]"
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Another option of the detector, as its function in Python has them, with text in "
            "quotes: tile=24, 'coarse=\"crd\"'. May be repeated.",
        ),
    ] = None,
    as_json: flags.Json = False,
) -> None:
    """Find unusual pixels in hyperspectral scenes, and measure how well, given the truth."""
    further = key_values(option or (), "--option")
    if classes is not None:
        from fedvad.verbs.classify import classify_scene

        if scenes is None or len(scenes) != 1:
            raise typer.BadParameter("--classes takes one scene")
        unused = {
            "--method": None if method == "rx" else method, "--mask": mask, "--moments": moments,
            "--save-moments": save_moments, "--save-backbone": save_backbone, "--windows": windows,
            "--border": border, "--ridge": ridge, "--norm": norm, "--channels": channels,
            "--steps": steps, "--spatial-weights": spatial_weights,
            "--spectral-weights": spectral_weights,
        }  # fmt: skip
        if given := [flag for flag, value in unused.items() if value not in (None, [])]:
            raise typer.BadParameter(f"{', '.join(given)} mean nothing with --classes: omit them")
        own: dict[str, Any] = {
            "size": size, "components": components, "epochs": epochs, "seed": seed,
        }  # fmt: skip
        options = _both(classify_scene, own, further)
        _, named = classify_scene(scenes[0], classes, out=out, **options)
        exit_with_json(as_json, named)
        typer.echo(
            f"{named['name']}: accuracy {named['accuracy']:.4f}, mean of classes "
            f"{named['mean_accuracy']:.4f}, kappa {named['kappa']:.4f}"
        )
        return
    from fedvad.verbs.spectral import score_scenes, spectral_rows

    sides = None if windows is None else numbers(windows, "--windows")
    if sides is not None and len(sides) != 2:
        raise typer.BadParameter(f"--windows takes two numbers like 17,15, not {windows!r}")
    own = {
        "windows": None if sides is None else tuple(sides), "border": border,
        "components": components, "ridge": ridge, "norm": norm, "channels": channels,
        "steps": steps, "size": size, "spatial_weights": spatial_weights,
        "spectral_weights": spectral_weights, "epochs": epochs, "seed": seed,
    }  # fmt: skip
    with showing() as progress:
        found = score_scenes(
            scenes or (),
            method=method,
            masks=mask or (),
            moments=moments or (),
            save_moments=save_moments,
            save_backbone=save_backbone,
            out=out,
            progress=progress,
            **_both(score_scenes, own, further),
        )
    exit_with_json(as_json, {"method": method, "scenes": [one.to_dict() for one in found]})
    if save_moments is not None:
        typer.echo(f"moments of the scenes' pixels: {save_moments}")
    if save_backbone is not None:
        typer.echo(f"weights of the backbone spectral: {save_backbone}")
    if not found:
        return
    from rich.console import Console

    from fedvad.report.tables import rich_table, without_empty

    Console().print(rich_table(f"Odd pixels by {method}", without_empty(spectral_rows(found))))
    if out is not None:
        typer.echo(f"pictures, maps and spectral.csv: {out}")


def _both(
    verb: Callable[..., Any], flags: Mapping[str, Any], further: Mapping[str, Any]
) -> dict[str, Any]:
    """Flags that were given, and --option; a usage error for what that must not say."""
    given = {name: value for name, value in flags.items() if value is not None}
    if twice := sorted(further.keys() & (given.keys() | signature(verb).parameters.keys())):
        raise typer.BadParameter(f"--option {twice[0]}: give its flag alone, if it has one")
    return dict(further) | given
