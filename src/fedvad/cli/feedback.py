"""`fedvad feedback`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer

from fedvad.cli import flags
from fedvad.cli.common import exit_with_json, limit_words, numbers, open_cache, print_json


def feedback(
    run: flags.Run,
    image: Annotated[Path | None, typer.Argument(help="Image that is answered.")] = None,
    normal: Annotated[
        bool, typer.Option("--normal", help="It was a false alarm: what it shows is normal.")
    ] = False,
    defect: Annotated[
        bool, typer.Option("--defect", help="It shows a defect, whether that was found or not.")
    ] = False,
    region: Annotated[
        str | None,
        typer.Option(
            metavar="X,Y,W,H",
            help="Part of the image that is meant, in pixels [default: all of it]",
        ),
    ] = None,
    site: Annotated[
        str | None,
        typer.Option(help="Site whose image it is; may be omitted if the run has only one."),
    ] = None,
    show: Annotated[
        bool, typer.Option("--list", help="Show all answers, with their numbers and dates.")
    ] = False,
    undo: Annotated[int | None, typer.Option(metavar="N", help="Undo answer N.")] = None,
    share: Annotated[
        bool, typer.Option("--share", help="Let the answered false alarms count at all sites.")
    ] = False,
    with_defects: Annotated[
        bool, typer.Option("--with-defects", help="With --share: let confirmed defects count, too.")
    ] = False,
    weights: flags.Weights = None,
    engine: flags.Engine = None,
    device: flags.Device = None,
    cache: flags.Cache = None,
    as_json: flags.Json = False,
) -> None:
    """Tell a run that an image of a site is normal, or shows a defect; each answer can be undone.

    It counts at this site from the next image on; thresholds and other sites stay as they are.
    """
    from fedvad.verbs import feedback as verb

    if sum([image is not None, show, share, undo is not None]) != 1:
        raise typer.BadParameter(
            "give an image with --normal or --defect, or --list, or --share, or --undo N"
        )
    if with_defects and not share:
        raise typer.BadParameter("--with-defects goes with --share")
    if share:
        found = verb.share_feedback(run, with_defects=with_defects)
        exit_with_json(as_json, found)
        for kind in ("rows", "defects"):
            if found[kind]:
                word = "normal" if kind == "rows" else "defective"
                rows = ", ".join(f"{n} of {site}" for site, n in found[kind].items())
                typer.echo(f"{word} patches that count at all sites now: {rows}")
        for site, reason in found["refused"].items():
            typer.echo(f"not shared: {site}: {reason}")
        return
    if show:
        listed = verb.list_feedback(run)
        exit_with_json(as_json, listed)
        for row in listed or [{}]:
            typer.echo(_line(row) if row else "no answers")
        return
    if undo is not None:
        answer = verb.undo_feedback(run, undo)
        print_json(answer) if as_json else typer.echo(_line(answer))
        return
    if normal == defect:
        raise typer.BadParameter("say either --normal or --defect")
    verdict: Literal["normal", "defect"] = "normal" if normal else "defect"
    box = None if region is None else numbers(region, "--region")
    if box is not None and len(box) != 4:
        raise typer.BadParameter("--region takes four numbers: X,Y,W,H")
    assert image is not None
    answer = verb.feedback(
        run, image, verdict, site=site, region=cast(Any, box and tuple(box)), weights=weights,
        engine=cast(Any, engine), device=device, cache=open_cache(cache),
    )  # fmt: skip
    exit_with_json(as_json, answer)
    typer.echo(_line(answer))
    limit = limit_words(answer["threshold"])
    typer.echo(f"score {answer['score']:.4g} to {answer['score_now']:.4g}, threshold {limit}")
    typer.echo(f"To take this back: fedvad feedback {run} --undo {answer['number']}")


def _line(row: dict[str, Any]) -> str:
    what = "normal" if row["verdict"] == "normal" else "a defect"
    part = "" if row["region"] is None else f", region {','.join(map(str, row['region']))}"
    counts = f"{row['rows']} patches" + (", at all sites" if row["shared"] else "")
    state = f"undone on {_date(row['undone'])}" if row["undone"] else counts
    return (
        f"{row['number']}  {_date(row['date'])}  {row['site']}: {row['name']}{part} "
        f"({row['image']}) is {what}; {state}"
    )


def _date(text: str) -> str:
    return f"{text[:10]} {text[11:16]} UTC"
