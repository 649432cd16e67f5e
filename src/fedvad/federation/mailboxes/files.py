"""The mailbox of signed files: each holds one upload, and its key says which site it is from."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from fedvad.errors import PayloadError
from fedvad.federation.server import Receipt, Server
from fedvad.federation.signed import SignedMessage, read_bounded


def receive_files(
    server: Server,
    files: Sequence[Path],
    trusted: Mapping[bytes, str],
    forgotten: Collection[str] = (),
) -> list[Receipt]:
    """Give the open round of a server what files hold; a file that is refused stops no other.

    files: in any order. trusted: 32-byte public keys to the names of the sites that they speak
    for. forgotten: sites that left, whose files are refused. A refusal is entered under the file's
    path. Source: ours.
    """
    receipts = []
    for path in files:
        try:
            data = read_bounded(path, server.max_bytes)
            signed = SignedMessage.parse(data)
            name = signed.check(dict(trusted))
            if name in forgotten:
                raise PayloadError(
                    f"{name} was taken out (bank forget): to let it return, --take-back {name}"
                )
        except PayloadError as error:
            server.refuse(str(path), str(error))
        else:
            receipts.append(
                server.receive(name, [signed.message], label=str(path), size=len(data))
            )  # fmt: skip
    return receipts
