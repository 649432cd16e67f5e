"""What a message or a receipt holds, in sentences for an auditor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedvad.federation.exchange.sums import has_sums
from fedvad.federation.exchange.weights import has_weights
from fedvad.federation.payload import Payload
from fedvad.runs.receipt import ForgetReceipt

_CAUTION = (
    "CAUTION: the file holds more than {} and the manifest shown, or was written by another "
    "program; what else is inside is not known."
)


def contents_of(payload: Payload) -> dict[str, Any]:
    """What a message holds, as numbers."""
    manifest, vectors = payload.manifest, payload.arrays.get("vectors")
    known = vectors is not None and vectors.ndim == 2
    weights = sum(a.size for a in payload.arrays.values()) if has_weights(payload) else None
    sums = sum(a.size for a in payload.arrays.values()) if has_sums(payload) else None
    of_all = "global memory" if weights is None else "mean weights"
    of_all = f"{of_all if sums is None else 'averages'} of a server"
    return {
        "what": "upload of a site" if manifest.kind == "upload" else of_all,
        "site": manifest.site or None,
        "round": manifest.round,
        "rows": len(vectors) if vectors is not None and known else None,
        "values_per_row": int(vectors.shape[1]) if vectors is not None and known else None,
        "dtype": str(vectors.dtype) if vectors is not None else None,
        "weights": weights,
        "sums": sums,
        "n_images": manifest.n_images,
        "n_patches": manifest.n_patches,
        "features": manifest.features,
    }


def sentences(contents: dict[str, Any]) -> list[str]:
    """What a message with these `contents_of` holds, and does not."""
    whose = f"what site {contents['site']!r} sends up" if contents["site"] else "of all its sites"
    says = [f"This is the {contents['what']}: {whose}, round {contents['round']}."]
    if contents["weights"] is not None:
        return [*says, *_on_weights(contents)]
    if contents["sums"] is not None:
        return [*says, *_on_sums(contents)]
    says += [
        f"It holds {contents['rows']} rows of {contents['values_per_row']} numbers "
        f"({contents['dtype']}), and for each row a weight and a spread.",
        f"The rows stand for {contents['n_patches']} patches of {contents['n_images']} normal "
        "images (as the sender counts).",
        *(["Rows are all of the site that sent it."] if contents["site"] else []),
        "A row is what the backbone makes of one real image patch, or an average of several such; "
        "the file does not say which, the configuration of the sender does.",
        f"Its features are of configuration {contents['features']}; only files of one "
        "configuration can be merged.",
    ]
    if contents["nothing_else"]:
        says.append(
            "No image, no file name and no model weight is inside: the file consists of these "
            "rows, weights, spreads and the manifest shown, and of nothing else, to the last byte."
        )
    else:
        says.append(_CAUTION.format("the rows"))
    return says


def _on_weights(contents: dict[str, Any]) -> list[str]:
    says = [
        f"It holds {contents['weights']:,} weights of a student, a network trained on "
        f"{contents['n_images']} normal images (as the sender counts) to imitate the backbone.",
        "No image and no file name is inside; but weights are made from the images, and can hold "
        "more of them than anybody meant to send: how much, is not known.",
        f"They go with features of configuration {contents['features']}; only files of one "
        "configuration can be merged.",
    ]
    return says if contents["nothing_else"] else [*says, _CAUTION.format("weights")]


def _on_sums(contents: dict[str, Any]) -> list[str]:
    whose = "sums over" if contents["site"] else "averages over"
    says = [
        f"It holds {contents['sums']:,} numbers: {whose} {contents['n_images']} normal images (as "
        "the sender counts), or the public keys by which sites hide such sums from the server.",
        "No image, no file name, no patch and no model weight is inside. What sums tell of a "
        "single image, masks and noise decide: see the configuration of the sender.",
        f"They go with features of configuration {contents['features']}; only files of one "
        "configuration can be added.",
    ]
    return says if contents["nothing_else"] else [*says, _CAUTION.format("sums")]


def on_receipt(receipt: ForgetReceipt) -> list[str]:
    """What a receipt says."""
    what = "all rows" if receipt.image is None else f"the rows of image {receipt.image}"
    left = ", ".join(receipt.sites_left)
    return [
        f"This is a receipt: on {receipt.date} {what} of site {receipt.site!r} were taken out of "
        f"every memory; the sites left are {left}.",
        f"Thresholds are {receipt.thresholds}"
        + (", and the others have sent again what they had left to it." * receipt.repaired or "."),
        f"The file with the memory, {receipt.file}, has SHA-256 {receipt.after} since: sha256sum "
        "shows whether a file is the one that is meant.",
    ]


def on_key(path: Path, name: str, fingerprint: str) -> list[str]:
    """Whose a public key is, and what it is for."""
    return [
        f"This is the public key of {name!r}, as its file is named; it may be handed to anybody.",
        f"Its fingerprint is {fingerprint}: compare it with the owner's, by telephone for example.",
        f"fedvad inspect FILE --trust {path} says whether the owner signed a message or receipt.",
    ]


def on_signature(signature: dict[str, Any] | None) -> str:
    """What a signature, or none, is worth."""
    if signature is None:
        return "It is not signed: who made it, and whether it was changed, is unknown."
    key = f"the key with fingerprint {signature['fingerprint']}"
    if not signature["verifies"]:
        return f"CAUTION: its signature by {key} does NOT verify: changed, damaged or forged."
    if signature["signer"] is not None:
        return f"Its signature verifies: {signature['signer']!r} made it ({key})."
    if signature["checked_against"] is not None:
        return f"CAUTION: it was signed by {key}, which is NOT among the trusted keys."
    return f"Its signature verifies with {key}; compare it with the one that the sender tells you."
