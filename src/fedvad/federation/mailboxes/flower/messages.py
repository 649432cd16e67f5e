"""What a server asks and a site answers, and how both travel as records of Flower.

Payloads are fedvad's own safetensors bytes; Flower carries them unopened, in chunks of 5 MB.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from fedvad._version import __version__
from fedvad.errors import PayloadError, join_names

if TYPE_CHECKING:
    from flwr.app import RecordDict

PROTOCOL = 2
MAX_BYTES = 1 << 30
Kind = Literal["hello", "round", "finish", "threshold"]
_RECORD, _PAYLOADS, _FORMAT = "fedvad", "payloads", "fedvad.safetensors"
_MAX_TEXT = 1 << 20
_FACTS = "told"  # what `facts` are called in protocol 2
_DEEPEST = 8  # levels of nesting in them
_MAX_PAYLOADS = 1000


@dataclass(frozen=True)
class Instruction:
    """What a server asks of one site.

    kind: `hello` (who are you), `round` (make it and send the upload), `finish` (take the final
    memory), `threshold` (take the one of all sites, from the counts in `facts`). federation: names
    this training, for the site's state. sites: all names of the federation, sorted; a site's
    position among them sets its seed. config: JSON of `TrainConfig`. held: last round of this site
    that the server has, 0 for none. payload: the global memory as bytes, empty before the first.
    """

    kind: Kind
    federation: str = ""
    round: int = 0
    sites: tuple[str, ...] = ()
    config: str = "{}"
    held: int = 0
    payload: bytes = b""
    facts: dict[str, Any] = field(default_factory=dict)
    protocol: int = PROTOCOL
    version: str = __version__


@dataclass(frozen=True)
class Reply:
    """What a site answers.

    payloads: every upload that the server has not, oldest first. facts: numbers about the site's
    work, as JSON values. refusal: why the site does not take part, empty if it does.
    """

    site: str
    round: int = 0
    payloads: tuple[bytes, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    refusal: str = ""
    protocol: int = PROTOCOL
    version: str = __version__


def to_records(message: Instruction | Reply) -> RecordDict:
    """The message as one `ConfigRecord` and, if it carries any, one `ArrayRecord` of payloads."""
    from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

    values = dict(vars(message))
    values[_FACTS] = json.dumps(values.pop("facts"))
    if isinstance(message, Instruction):
        payloads: tuple[bytes, ...] = (message.payload,) if message.payload else ()
        values["sites"] = json.dumps(message.sites)
        del values["payload"]
    else:
        payloads = message.payloads
        del values["payloads"]
    records = RecordDict({_RECORD: ConfigRecord(values)})
    if payloads:
        arrays = {f"{i:04d}": Array("uint8", (len(p),), _FORMAT, p) for i, p in enumerate(payloads)}
        records[_PAYLOADS] = ArrayRecord(arrays)
    return records


def from_records(
    records: RecordDict, kind: type[Instruction] | type[Reply], max_bytes: int = MAX_BYTES
) -> Instruction | Reply:
    """What `to_records` made; raises `PayloadError` for anything else, never another error."""
    try:
        values = dict(records.config_records[_RECORD])
        arrays = dict(records.array_records.get(_PAYLOADS, {}))
        protocol = values.get("protocol")
        if protocol != PROTOCOL:
            raise PayloadError(
                f"the other side (fedvad {str(values.get('version'))[:20]}) speaks protocol "
                f"{str(protocol)[:20]}, this fedvad {__version__} speaks {PROTOCOL}: install the "
                "same release everywhere"
            )
        return _parse(values, _payloads(arrays, max_bytes), kind)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise PayloadError(f"not a message of fedvad: {error}") from error


def _payloads(arrays: dict[str, Any], max_bytes: int) -> tuple[bytes, ...]:
    if len(arrays) > _MAX_PAYLOADS:
        raise PayloadError(f"the message carries {len(arrays)} payloads")
    payloads = tuple(arrays[name].data for name in sorted(arrays))
    if any(a.stype != _FORMAT for a in arrays.values()):
        raise PayloadError("the payload is in a foreign format")
    total = sum(map(len, payloads))
    if total > max_bytes:
        raise PayloadError(f"a payload of {total} bytes exceeds the limit of {max_bytes}")
    return payloads


def _parse(
    values: dict[str, Any], payloads: tuple[bytes, ...], kind: type[Instruction] | type[Reply]
) -> Instruction | Reply:
    expected = {"protocol": int, "version": str, "round": int, _FACTS: str}
    if kind is Instruction:
        expected |= {"kind": str, "federation": str, "config": str, "sites": str, "held": int}
    else:
        expected |= {"site": str, "refusal": str}
    if set(values) != set(expected):
        raise PayloadError(f"its fields are {join_names(map(str, values))}")
    for name, wanted in expected.items():
        if type(values[name]) is not wanted:
            raise PayloadError(f"{name} is not of type {wanted.__name__}")
        if wanted is str and len(values[name]) > _MAX_TEXT:
            raise PayloadError(f"{name} is too long")
    facts = json.loads(values.pop(_FACTS))
    if not isinstance(facts, dict) or not _shallow(facts, _DEEPEST):
        raise PayloadError("facts are not an object, or nested too deeply")
    if kind is Reply:
        return Reply(**(values | {"facts": facts, "payloads": payloads}))
    sites = json.loads(values["sites"])
    if not isinstance(sites, list) or not all(isinstance(name, str) for name in sites):
        raise PayloadError("sites is not a list of names")
    if values["kind"] not in get_args(Kind) or len(payloads) > 1:
        raise PayloadError(f"its kind is {values['kind'][:20]!r} with {len(payloads)} payloads")
    payload = payloads[0] if payloads else b""
    own = {"sites": tuple(sites), "payload": payload, "facts": facts}
    return Instruction(**(values | own))


def _shallow(value: object, levels: int) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels > 0 and all(_shallow(part, levels - 1) for part in parts)
