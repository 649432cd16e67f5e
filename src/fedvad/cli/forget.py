"""`fedvad forget`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from fedvad.cli import flags
from fedvad.cli.common import exit_with_json, limit_words, open_cache, showing


def forget(
    run: flags.Run,
    site: Annotated[str | None, typer.Option(help="Site that leaves, or the image's site.")] = None,
    image: Annotated[
        str | None,
        typer.Option(
            help="Image of the site to forget, instead of the whole site: its file, or the digest "
            "of one that is gone."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the sites that stay: they fill in what they relied on the leaving "
            "site for, and thresholds are exact."
        ),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(help="Private key that signs the receipt, as fedvad bank keygen makes one."),
    ] = None,
    receipt: Annotated[
        Path | None,
        typer.Option(
            help="Where to write the receipt [default: in RUN, forgot-SITE.fedvad or "
            "forgot-SITE-IMAGE.fedvad]"
        ),
    ] = None,
    no_receipt: Annotated[
        bool, typer.Option("--no-receipt", help="Sign no receipt, in place of --key.")
    ] = False,
    weights: flags.Weights = None,
    engine: flags.Engine = None,
    device: flags.Device = None,
    cache: flags.Cache = None,
    as_json: flags.Json = False,
) -> None:
    """Take a site, or one image of it, out of every memory of a run, with a signed receipt.

    Results, pages (HTML, PDF) and pictures made of the run are removed, as are thresholds before a
    calibration and what an update kept.
    """
    from fedvad.verbs.forget import forget as run_forget

    if (key is None) != no_receipt:
        raise typer.BadParameter(
            "give either --key, which signs a receipt of what leaves, or --no-receipt"
        )
    with showing() as progress:
        done = run_forget(
            run, site=site, image=image, data=data, key=key, receipt=receipt,
            no_receipt=no_receipt, weights=weights, engine=cast(Any, engine),
            device=device, cache=open_cache(cache), progress=progress,
        )  # fmt: skip
    exit_with_json(as_json, done)
    what = f"image {done['image']} of {done['site']}" if done["image"] else done["site"]
    rows = ", ".join(f"{count} of {name}" for name, count in done["rows_removed"].items())
    typer.echo(f"{what} left {run}: rows removed: {rows}; sites left: {len(done['sites_left'])}")
    changed = [
        f"threshold of {name}: {limit_words(limit['before'])} to {limit_words(limit['now'])}"
        for name, limit in done["site_thresholds"].items()
        if limit["before"] != limit["now"]
    ]
    typer.echo(f"thresholds{'' if changed else ' unchanged'}: {done['thresholds']}")
    for line in changed:
        typer.echo(line)
    if changed:
        typer.echo("Evaluate again: other thresholds catch other defects.")
    if done["removed"]:
        typer.echo(f"removed, as they show or measure its images: {', '.join(done['removed'])}")
    if done["receipt"]:
        typer.echo(f"receipt: {done['receipt']} (fedvad inspect FILE --trust PUBLIC_KEY)")
    else:
        typer.echo("no receipt, as asked")
