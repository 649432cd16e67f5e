"""What a site of an air-gapped federation keeps between its steps, on its own disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from fedvad.data.checked import parse_values
from fedvad.data.files import write_atomically
from fedvad.data.sealed import read_sealed, write_sealed
from fedvad.detectors.artefact import read_arrays, write_arrays
from fedvad.detectors.student.parameters import under
from fedvad.errors import ArtefactError, ConfigError, PayloadError
from fedvad.federation.ledger import Ledger, RoundEntry
from fedvad.federation.payload import Manifest, Payload
from fedvad.federation.signed import SignedMessage, read_bounded
from fedvad.runs.config import FREE_ON_RESUME, TrainConfig, resolve_config
from fedvad.runs.families import method_class

_SITE, _GLOBAL, _LEDGER, _SENT = "site.safetensors", "global.fedvad", "ledger.json", "sent"


@dataclass(frozen=True, eq=False)
class SiteState:
    """A site after its last export.

    index: see `export`. data: folder of its images. kept: what the next round needs of those
    before, see `Member.snapshot`. upload: what it sent in round `upload.manifest.round`.
    n_images: normal images that it was made from.
    """

    site: str
    index: int
    config: TrainConfig
    data: Path
    kept: Mapping[str, npt.NDArray[Any]]
    upload: Payload
    n_images: int

    @property
    def round(self) -> int:
        """Round of the last export."""
        return self.upload.manifest.round


def save_site(folder: Path, state: SiteState) -> None:
    """Write the whole state as one file, so that a kill leaves the old or the new one."""
    arrays = {f"kept/{name}": array for name, array in state.kept.items()}
    arrays |= {f"upload/{name}": array for name, array in state.upload.arrays.items()}
    values = {
        "kind": "site state",
        "site": state.site,
        "index": state.index,
        "config": state.config.model_dump(mode="json"),
        "data": str(state.data),
        "upload": state.upload.manifest.model_dump(mode="json"),
        "n_images": state.n_images,
    }
    write_arrays(folder / _SITE, arrays, values)


def load_site(folder: Path) -> SiteState | None:
    """What `save_site` wrote, or None before a first export; raises `ArtefactError`."""
    path = folder / _SITE
    if not path.exists():
        return None
    arrays, values = read_arrays(path)
    try:
        kept = under("kept/", arrays) or _kept_before(arrays)
        return SiteState(
            site=values["site"],
            index=values["index"],
            config=TrainConfig.model_validate(values["config"]),
            data=Path(values["data"]),
            kept=kept,
            upload=Payload(Manifest.model_validate(values["upload"]), under("upload/", arrays)),
            n_images=values["n_images"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ArtefactError(f"the state in {path} is incomplete or damaged: {error}") from error


def _kept_before(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """What an earlier fedvad kept, which knew only memories."""
    generator = {name: arrays[name] for name in arrays if name.startswith("generator/")}
    return under("bank/", arrays) | generator


def next_config(state: SiteState | None, file: Path | None, options: dict[str, Any]) -> TrainConfig:
    """The configuration of a site's next round: given at the first, remembered afterwards.

    options: values of `TrainConfig`, None where not given. Raises `ConfigError` for one that
    differs from what the site began with.
    """
    if state is None:
        return resolve_config(file, **options)
    before = state.config.model_dump()
    if file is not None:
        now = resolve_config(file, **options)
    else:
        given = {key: value for key, value in options.items() if value is not None}
        # options without a meaning must not be given
        means = method_class(state.config.method).options
        now = resolve_config(None, **{k: v for k, v in before.items() if k in means} | given)
    changed = [k for k, v in now.model_dump().items() if k not in FREE_ON_RESUME and before[k] != v]
    if changed:
        raise ConfigError(
            f"site {state.site} began this federation with another configuration: "
            + ", ".join(f"{k} was {before[k]!r}, now {getattr(now, k)!r}" for k in changed)
            + "; omit the options, or begin again with another --state"
        )
    return now


def save_sent(folder: Path, round_: int, data: bytes) -> Path:
    """Keep a copy of a file that leaves the building."""
    path = folder / _SENT / f"round-{round_:04d}.fedvad"
    write_atomically(path, data)
    return path


def save_global(folder: Path, data: bytes) -> None:
    """Keep the signed global memory; the site's next round starts from it."""
    write_atomically(folder / _GLOBAL, data)


def load_global(folder: Path) -> Payload | None:
    """The global memory taken last, or None; raises `ArtefactError` when it is damaged."""
    path = folder / _GLOBAL
    if not path.exists():
        return None
    try:
        signed = SignedMessage.parse(read_bounded(path))
        if not signed.verifies():
            raise PayloadError("its signature does not fit any more")
        return Payload.from_bytes(signed.message)
    except PayloadError as error:
        raise ArtefactError(f"{path} is damaged ({error}): remove it and import again") from error


def load_ledger(folder: Path) -> Ledger:
    """Rounds whose global memory the site took, none at first; `ArtefactError` when damaged."""
    path = folder / _LEDGER
    if not path.exists():
        return Ledger()
    return parse_values(Ledger, read_sealed(path), path)


def note_round(folder: Path, state: SiteState, merged: Payload, received: int) -> None:
    """Enter a round in the site's ledger, in place of an earlier entry of the same round.

    Bytes are lengths of signed files; a round that the site took no part in has no upload.
    `received` is the length of the global file.
    """
    round_ = merged.manifest.round
    sent = folder / _SENT / f"round-{round_:04d}.fedvad"
    took_part = state.round == round_ and sent.is_file()
    entry = RoundEntry(
        round=round_,
        sites=[state.site] if took_part else [],
        bytes_up={state.site: sent.stat().st_size} if took_part else {},
        bytes_down={state.site: received},
        rows_up={state.site: state.upload.rows} if took_part else {},
        memory_rows=merged.rows,
        coverage=merged.manifest.coverage or 0.0,
    )
    ledger = load_ledger(folder)
    rounds = [other for other in ledger.rounds if other.round != round_] + [entry]
    ledger.rounds[:] = sorted(rounds, key=lambda e: e.round)
    write_sealed(folder / _LEDGER, ledger.model_dump())
