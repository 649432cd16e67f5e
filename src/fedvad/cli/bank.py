"""`fedvad bank`: a federation by signed files, for sites that share no network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fedvad.cli import bank_thresholds, flags
from fedvad.cli.common import exit_with_json, limit_words, open_cache, showing
from fedvad.cli.options import given_options, taking

bank_app = typer.Typer(
    help="Federation by signed files, for sites that share no network.", no_args_is_help=True
)
for _command in (bank_thresholds.scores, bank_thresholds.thresholds, bank_thresholds.apply):
    bank_app.command()(_command)

AllowWeightsOption = Annotated[
    bool,
    typer.Option(
        "--allow-weights", help="Let weights of a student leave the site, as paste and stfpm need."
    ),
]
# of train, at a site and at the server
_AT_SITE = (
    "method", "backbone", "weights", "image_size", "engine", "upload_bytes", "merge",
    "memory_rows", "max_bad", "seed",
)  # fmt: skip
_AT_SERVER = ("method", "merge", "merge_weights", "memory_rows", "defence", "seed")
_OF_FEATURES = ("backbone", "weights", "image_size", "seed")


@bank_app.command()
def forget(
    site: Annotated[str, typer.Argument(help="Name of the site that leaves.")],
    state: flags.State,
    key: flags.Key,
    out: Annotated[Path, typer.Option(help="Signed global memory to write.")],
    receipt: Annotated[
        Path | None, typer.Option(help="Signed statement to write of what left.")
    ] = None,
    as_json: flags.Json = False,
) -> None:
    """At the server: take a site out of the memory, in a round without it."""
    from fedvad.verbs.bank_forget import forget_site

    result = forget_site(site, state, key, out, receipt=receipt)
    exit_with_json(as_json, result)
    typer.echo(
        f"{site} left: {result['rows_removed'][site]} rows; round {result['round']} holds "
        f"{result['rows_now']['global']} rows of {', '.join(result['sites_left'])}   {out}"
    )
    typer.echo(f"bank merge refuses files of {site} from now on, unless --take-back {site}.")


@bank_app.command()
def keygen(
    out: Annotated[Path, typer.Option(help="Folder for the two key files.")],
    name: Annotated[
        str, typer.Option(help="Name of the site, or of the server, and of the files.")
    ] = "site",
    as_json: flags.Json = False,
) -> None:
    """Make an Ed25519 key pair: NAME.key stays here, NAME.pub goes to those who must trust it."""
    from fedvad.federation.signed import generate_keys, key_fingerprint

    private, public, key = generate_keys(out, name)
    answer = {
        "name": public.stem,
        "private": str(private),
        "public": str(public),
        "fingerprint": key_fingerprint(key),
    }
    exit_with_json(as_json, answer)
    typer.echo(f"private key  {private}  (stays here, keep it secret)")
    typer.echo(f"public key   {public}  (hand it over; compare the fingerprint by telephone)")
    typer.echo(f"fingerprint  {answer['fingerprint']}")


@bank_app.command(cls=taking(*_AT_SITE))
def export(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(help="Folder of this site's images.")],
    state: flags.State,
    key: flags.Key,
    out: Annotated[Path, typer.Option(help="Signed file to write.")],
    site: Annotated[
        str | None, typer.Option(help="Name of this site [default: the folder's]")
    ] = None,
    site_index: Annotated[
        int | None,
        typer.Option(
            help="Position, from 0, of this site in the sorted list of all site names; sets its "
            "random seed, needed at the first export."
        ),
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option(help="Run folder of this site, whose answered false alarms go to all sites."),
    ] = None,
    with_defects: Annotated[
        bool,
        typer.Option("--with-defects", help="Confirmed defects of --answers go to all sites, too."),
    ] = False,
    config: flags.Config = None,
    allow_weights: AllowWeightsOption = False,
    cache: flags.Cache = None,
    cache_size: flags.CacheSize = "20G",
    as_json: flags.Json = False,
) -> None:
    """A site's round: read its images, update its memory, write what it sends as a signed file.

    Options are given at the first export, remembered, and may be omitted afterwards, all but
    --allow-weights; others than these go into --config.
    """
    from fedvad.verbs.bank import export_upload

    with showing() as progress:
        answer = export_upload(
            data, state, key, out, site=site, index=site_index, config_file=config,
            options=given_options(context), cache=open_cache(cache, cache_size), progress=progress,
            allow_weights=allow_weights, answers=answers, with_defects=with_defects,
        )  # fmt: skip
    exit_with_json(as_json, answer)
    holds = (
        f"{answer['weights']:,} weights of a student, trained on"
        if answer["weights"]
        else f"a key, or sums ({answer['sums']:,} numbers), of"
        if answer["sums"]
        else f"{answer['rows']} rows of {answer['values_per_row']} values stand for "
        f"{answer['n_patches']} patches of"
    )
    typer.echo(
        f"round {answer['round']} of site {answer['site']}: {holds} {answer['n_images']} images"
    )
    typer.echo(f"{answer['path']}  ({answer['bytes']:,} bytes, signed by {answer['fingerprint']})")


@bank_app.command(cls=taking(*_AT_SERVER))
def merge(
    context: typer.Context,
    state: flags.State,
    key: flags.Key,
    out: Annotated[Path, typer.Option(help="Signed global memory to write.")],
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Signed files of sites; none: write the last result again."),
    ] = None,
    trust: Annotated[
        Path | None, typer.Option(help="Folder of the sites' public keys, SITE.pub.")
    ] = None,
    quorum: Annotated[int, typer.Option(min=1, help="Sites whose file must pass.")] = 1,
    features: Annotated[
        str | None,
        typer.Option(
            help="Key of the feature configuration [default: that of most files at first]"
        ),
    ] = None,
    config: flags.Config = None,
    allow_weights: AllowWeightsOption = False,
    take_back: Annotated[
        list[str] | None, typer.Option(help="Site that bank forget took out and that returns.")
    ] = None,
    as_json: flags.Json = False,
) -> None:
    """The server's round: check the sites' files, merge them, write the signed global memory.

    Exit code 4 when fewer files than the quorum pass; refused ones are named on standard error.
    """
    from fedvad.verbs.bank_server import merge_uploads

    answer = merge_uploads(
        files or [], trust, key, state, out, quorum=quorum, features=features,
        config_file=config, options=given_options(context), allow_weights=allow_weights,
        take_back=take_back or (),
    )  # fmt: skip
    exit_with_json(as_json, answer)
    typer.echo(_merged(answer))
    typer.echo(f"{answer['path']}  ({answer['bytes']:,} bytes, signed by {answer['fingerprint']})")


def _merged(answer: dict[str, Any]) -> str:
    if not answer["accepted"]:
        return f"round {answer['round']} written again"
    kept = f"; kept from before: {', '.join(answer['kept'])}" if answer["kept"] else ""
    refused = f"; refused: {len(answer['refused'])} files" if answer["refused"] else ""
    refused += f"; not trusted: {', '.join(answer['distrusted'])}" if answer["distrusted"] else ""
    return (
        f"round {answer['round']}: {', '.join(answer['accepted'])}{kept}{refused}; {_held(answer)}"
    )


def _held(answer: dict[str, Any]) -> str:
    """What a global message holds."""
    if answer["sums"]:
        return f"keys or averages of {answer['n_images']} images"
    if not answer["rows"]:
        return f"the mean weights of students trained on {answer['n_images']} images"
    stand_for = f"{answer['n_patches']} patches of {answer['n_images']} images"
    return f"{answer['rows']} rows stand for {stand_for}"


@bank_app.command(cls=taking(*_OF_FEATURES))
def audit(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="Message of a site, signed or not.")],
    data: Annotated[Path, typer.Option(help="Folder of that site's images.")],
    outsiders: Annotated[
        Path | None,
        typer.Option(help="Normal images not trained on [default: test/good of the site]"),
    ] = None,
    others: Annotated[
        Path | None, typer.Option(help="Another site's message: a stronger attack.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Picture (PNG) of patches and what a decoder made of them.")
    ] = None,
    config: flags.Config = None,
    cache: flags.Cache = None,
    as_json: flags.Json = False,
) -> None:
    """Measure what a message reveals about its images: membership, retrieval, inversion."""
    from fedvad.runs.config import resolve_config
    from fedvad.verbs.audit import audit as run_audit

    resolved = resolve_config(config, **given_options(context))
    with showing() as progress:
        answer = run_audit(
            file, data, resolved, outsiders=outsiders, others=others, out=out,
            cache=open_cache(cache), progress=progress,
        )  # fmt: skip
    exit_with_json(as_json, answer)
    typer.echo(f"{answer['rows']} rows of site {answer['site']}, round {answer['round']}")
    for sentence in answer["says"]:
        typer.echo(f"- {sentence}")
    if out is not None:
        typer.echo(f"picture: {out}  (above: patches behind rows; below: made from the rows)")


@bank_app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="Signed global memory.", metavar="GLOBAL")],
    state: flags.State,
    trust: Annotated[Path, typer.Option(help="The server's public key.")],
    out: Annotated[
        Path | None, typer.Option(help="Run folder for evaluate, predict, inspect.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Where the images are now, if they moved.")
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option(help="Earlier run folder, whose answers to alarms also count in --out."),
    ] = None,
    weights: flags.Weights = None,
    cache: flags.Cache = None,
    as_json: flags.Json = False,
) -> None:
    """Import the global memory; with --out make a run folder, with thresholds from own images."""
    from fedvad.verbs.bank_import import import_global

    with showing() as progress:
        answer = import_global(
            file, state, trust, out=out, data=data, weights=weights, cache=open_cache(cache),
            answers=answers, progress=progress,
        )  # fmt: skip
    exit_with_json(as_json, answer)
    typer.echo(f"round {answer['round']}: {_held(answer)}")
    if out is not None:
        limit = limit_words(answer["threshold"])
        typer.echo(f"threshold of {answer['site']}: {limit}   Run folder: {out}")
