"""`fedvad train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fedvad.cli.common import (
    CacheOption,
    CacheSizeOption,
    DefectOption,
    GoodOption,
    JsonOption,
    MaxPixelsOption,
    WeightsOption,
    open_cache,
    print_json,
    showing,
)

__all__ = ["show_results", "train"]

_Features = {"rich_help_panel": "Features"}
_Federation = {"rich_help_panel": "Federation and memory"}
_Scoring = {"rich_help_panel": "Scoring and thresholds"}


def train(
    data: Annotated[Path, typer.Argument(help="Folder of sites, or one set with --split.")],
    out: Annotated[Path, typer.Option(help="Run folder to write.")],
    method: Annotated[
        str | None,
        typer.Option(
            help="feddymem, feddymem-trained, feddymem-cluster, feddymem-position, patchcore; "
            "students: stfpm, paste, dcam, rd, aand, dmdd [default: feddymem]",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file of options; flags win.", show_default=False)
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Any timm model, mcunet_in3, mcunet_in4, filterbank, or a file of distill "
            "[default: fedvad-tiny, which comes with the package; resnet18 with --weights]",
            show_default=False,
            **_Features,
        ),
    ] = None,
    weights: WeightsOption = None,
    image_size: Annotated[
        str | None,
        typer.Option(
            help="256 (square), 256x512 (height x width), fit:256x512 or short:256 (proportions "
            "kept) [default: auto, from the images]",
            show_default=False,
            **_Features,
        ),
    ] = None,
    tiles: Annotated[
        int | None,
        typer.Option(
            help="Read images in tiles of this side, by default at their full size.",
            show_default=False,
            **_Features,
        ),
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option(help="Pixels that tiles share [default: 64]", show_default=False, **_Features),
    ] = None,
    region: Annotated[
        str | None,
        typer.Option(
            help="Where to look: LEFT,TOP,RIGHT,BOTTOM in percent, or a mask (white: look).",
            show_default=False,
            **_Features,
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="Taps of the backbone, for example 1,2 [default: per backbone]",
            show_default=False,
            **_Features,
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="openvino or torch [default: openvino]", show_default=False, **_Features),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="cpu, or cuda / mps with --engine torch [default: cpu]",
            show_default=False,
            **_Features,
        ),
    ] = None,
    cache: CacheOption = None,
    cache_size: CacheSizeOption = "20G",
    split: Annotated[
        str | None,
        typer.Option(
            help="Divide one set: iid:N, dirichlet:N:ALPHA or style:N.", show_default=False
        ),
    ] = None,
    good: GoodOption = None,
    defect: DefectOption = None,
    max_bad: Annotated[
        float | None,
        typer.Option(
            help="Share of unreadable images tolerated per site [default: 0.05]", show_default=False
        ),
    ] = None,
    max_pixels: MaxPixelsOption = None,
    rounds: Annotated[
        int | None, typer.Option(help="[default: 2]", show_default=False, **_Federation)
    ] = None,
    upload_bytes: Annotated[
        int | None,
        typer.Option(
            help="Bytes a site may send per round [default: 1000000]",
            show_default=False,
            **_Federation,
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="How rows travel: float16, float32, int8, pca or pq [default: float16]",
            show_default=False,
            **_Federation,
        ),
    ] = None,
    defence: Annotated[
        str | None,
        typer.Option(
            help="none, or robust: leave out sites that others do not back [default: none]",
            show_default=False,
            **_Federation,
        ),
    ] = None,
    merge: Annotated[
        str | None,
        typer.Option(
            help="concat, kmeans, kcenter or average [default: concat]",
            show_default=False,
            **_Federation,
        ),
    ] = None,
    memory_rows: Annotated[
        int | None,
        typer.Option(
            help="Rows of the global memory at most [default: 32768; kmeans, kcenter: 2000]",
            show_default=False,
            **_Federation,
        ),
    ] = None,
    participation: Annotated[
        float | None,
        typer.Option(
            help="Share of sites per round [default: 1]", show_default=False, **_Federation
        ),
    ] = None,
    join: Annotated[
        list[str] | None,
        typer.Option(
            help="SITE:ROUND of a site that joins late; may be repeated.",
            show_default=False,
            **_Federation,
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="Memory that scores: global, local or union [default: global]",
            show_default=False,
            **_Scoring,
        ),
    ] = None,
    map_mode: Annotated[
        str | None,
        typer.Option(
            "--map",
            help="nn1, cfa, patchcore or spread [default: nn1]",
            show_default=False,
            **_Scoring,
        ),
    ] = None,
    search: Annotated[
        str | None,
        typer.Option(help="fast or exact [default: fast]", show_default=False, **_Scoring),
    ] = None,
    target_fpr: Annotated[
        float | None,
        typer.Option(
            help="Wanted false-alarm rate of the thresholds [default: 0.01]",
            show_default=False,
            **_Scoring,
        ),
    ] = None,
    threshold_rule: Annotated[
        str | None,
        typer.Option(
            help="federated (from all sites' normal scores) or own [default: federated]",
            show_default=False,
            **_Scoring,
        ),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(help="Baselines to measure beside: local,pooled,identity", show_default=False),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="[default: 0]", show_default=False)] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Sites at a time [default: 2]", show_default=False)
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run in --out.")
    ] = False,
    track: Annotated[
        str | None,
        typer.Option(help="Tell an experiment tracker, too: mlflow or tensorboard."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train one detector per site; no image leaves its site, only reduced memories do.

    (Students send weights instead.)
    """
    from fedvad.pipeline.config import resolve_config
    from fedvad.pipeline.tracking import check_tracker
    from fedvad.pipeline.tracking import track as run_track
    from fedvad.pipeline.train import train as run_train

    tracker = None if track is None else check_tracker(track)
    flags: dict[str, Any] = {
        "method": method, "backbone": backbone, "weights": weights, "image_size": image_size,
        "tiles": tiles, "overlap": overlap, "region": region,
        "layers": _layers(layers), "engine": engine, "device": device, "split": split,
        "good": good or None, "defect": defect or None,
        "max_bad": max_bad, "max_pixels": max_pixels,
        "rounds": rounds, "upload_bytes": upload_bytes,
        "precision": precision, "merge": merge, "memory_rows": memory_rows, "defence": defence,
        "participation": participation, "join": _joins(join),
        "reference": reference, "map": map_mode, "search": search, "target_fpr": target_fpr,
        "threshold_rule": threshold_rule, "compare": compare, "seed": seed, "jobs": jobs,
    }  # fmt: skip
    resolved = resolve_config(config, **flags)
    with showing() as progress:
        results = run_train(
            data, out, resolved, cache=open_cache(cache, cache_size), resume=resume,
            progress=progress,
        )  # fmt: skip
    told = None if tracker is None else run_track(out, tracker)
    if as_json:
        print_json(results)
        return
    show_results(results, out)
    if told is not None:
        typer.echo(f"Tracked by {tracker}: {told}")


def show_results(results: dict[str, Any], out: Path | None) -> None:
    """Tables and verdict on the terminal, and where the files are."""
    from rich.console import Console

    from fedvad.report.tables import rich_tables

    console = Console()
    for table in rich_tables(results):
        console.print(table)
    if "verdict" in results:
        console.print(results["verdict"], style="bold", highlight=False, markup=False)
    shown = [f"Backbone: {results['backbone']}"] if "backbone" in results else []
    if out is not None:
        page = out / "report.html"
        shown += [f"Report: {page}"] if page.exists() else []
        shown.append(f"Run folder: {out}")
    if shown:
        console.print("   ".join(shown), soft_wrap=True, highlight=False, markup=False)


def _layers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"--layers takes numbers like 1,2, not {text!r}") from None


def _joins(items: list[str] | None) -> dict[str, int] | None:
    if not items:
        return None
    joins = {}
    for item in items:
        name, _, round_ = item.rpartition(":")
        if not name or not round_.isdecimal():
            raise typer.BadParameter(f"--join takes SITE:ROUND, not {item!r}")
        joins[name] = int(round_)
    return joins
