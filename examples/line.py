"""A camera's folder in, a coil of a PLC out: `fedvad serve` decides on every new image.

Needs Python alone. The coil (Modbus TCP) is on for a part to be rejected, or with `--on pass` for a
part to be let through, so that nothing passes where this program has died or a cable is cut. What
goes wrong (a service that does not answer, an unreadable image, no threshold) rejects the part too.

    fedvad serve run --site alder &
    python line.py camera --plc 192.168.0.10 --coil 0
"""

from __future__ import annotations

import argparse
import json
import socket
import struct
import sys
import time
import urllib.request
import uuid
from pathlib import Path

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}


def ask(service: str, image: Path, timeout: float) -> tuple[bool, str]:
    """Whether to reject the part, and why."""
    boundary = uuid.uuid4().hex
    body = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="part"\r\n\r\n'
    ).encode()
    body += image.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
    request = urllib.request.Request(
        f"{service}/v1/predict",
        data=body,
        headers={"Content-Type": f"multipart/form-data; boundary={boundary}"},
    )
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        result = json.load(answer)["results"][0]
    if result["error"]:
        return True, str(result["error"]["message"])
    if result["anomalous"] is None:
        return True, "no threshold: give --threshold to fedvad serve"
    reject = bool(result["anomalous"])
    side = ">" if reject else "<="
    return reject, f"score {result['score']:.4g} {side} threshold {result['threshold']:.4g}"


def write_coil(host: str, port: int, coil: int, value: bool, timeout: float) -> None:
    """Modbus TCP, function 5: write a single coil. Raises OSError unless the PLC confirms it."""
    message = struct.pack(">HHHBBHH", 1, 0, 6, 1, 5, coil, 0xFF00 if value else 0)
    with socket.create_connection((host, port), timeout=timeout) as plc:
        plc.sendall(message)
        answer = b""
        while len(answer) < len(message):
            received = plc.recv(len(message) - len(answer))
            if not received:
                raise OSError("the PLC closed the connection")
            answer += received
            if len(answer) >= 9 and answer[7] != 5:
                raise OSError(f"the PLC refused coil {coil}: Modbus exception {answer[8]}")
    if answer != message:
        raise OSError(f"the PLC did not confirm coil {coil}")


def complete(path: Path, wait: float) -> bool:
    """Whether the camera has finished the file."""
    size = path.stat().st_size
    time.sleep(wait)
    return size > 0 and path.stat().st_size == size


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the camera writes")
    parser.add_argument("--service", default="http://127.0.0.1:8000")
    parser.add_argument("--plc", required=True, help="address of the PLC")
    parser.add_argument("--port", type=int, default=502)
    parser.add_argument("--coil", type=int, default=0, help="number of the coil")
    parser.add_argument(
        "--on", choices=("reject", "pass"), default="reject", help="what it is on for"
    )
    parser.add_argument("--timeout", type=float, default=2.0, help="seconds for each answer")
    parser.add_argument("--once", action="store_true", help="decide on what is there, then end")
    options = parser.parse_args()
    # images that are there at the start are of parts that have passed
    seen = set() if options.once else set(options.folder.iterdir())
    while True:
        for path in sorted(set(options.folder.iterdir()) - seen):
            if path.suffix.lower() not in SUFFIXES or not complete(path, 0.02):
                continue
            seen.add(path)
            try:
                reject, why = ask(options.service.rstrip("/"), path, options.timeout)
            except (OSError, ValueError, KeyError, IndexError) as error:
                reject, why = True, f"no decision: {error}"
            on = reject == (options.on == "reject")
            write_coil(options.plc, options.port, options.coil, on, options.timeout)
            print(f"{path.name}: {'reject' if reject else 'pass'}, {why}", flush=True)
        if options.once:
            return 0
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main())
