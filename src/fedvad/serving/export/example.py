"""Score images with a model that fedvad exported: python example.py MODEL IMAGE...

MODEL is model.onnx or model.xml. Needs numpy, pillow, and onnxruntime or openvino; not fedvad.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def main(model: str, *images: str) -> None:
    """Write score and decision of each image."""
    taken = json.loads(Path(model + ".json").read_text(encoding="utf-8"))["input"]
    size = taken["height"], taken["width"]
    batch = np.stack([read(path, size, taken["keeps_proportions"]) for path in images])
    if model.endswith(".onnx"):
        import onnxruntime

        session = onnxruntime.InferenceSession(model)
        names = [output.name for output in session.get_outputs()]
        values = session.run(None, {"images": batch})
    else:
        import openvino

        network = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        names = [output.any_name for output in network.outputs]
        values = network([batch]).to_tuple()
    found = dict(zip(names, values, strict=True))
    for i, path in enumerate(images):
        decision = found["anomalous"][i] if "anomalous" in found else "unknown"
        sys.stdout.write(f"{path}: score {found['score'][i]:.6g}, anomalous {decision}\n")


def read(path: str, size: "tuple[int, int]", keeps_proportions: bool = False) -> np.ndarray:
    """One image file as the uint8 (height, width, 3) RGB that the model takes.

    As fedvad itself reads files: deep grey to 8 bits, transparency over white, turned upright by
    the EXIF orientation, then resized. Raises ValueError for files of several images, where the
    range of deep values cannot be known, and for an image of another size where the model keeps
    proportions: those need fedvad.
    """
    with Image.open(path) as image:
        count = getattr(image, "n_frames", 1)
        if count > 1 and image.format != "MPO":
            raise ValueError(f"{path}: holds {count} images: split the file")
        image.load()
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            grey = to_8_bit(*deep_values(image), path)
            pixels = np.repeat(grey[:, :, None], 3, axis=2)
        elif image.has_transparency_data:
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            pixels = np.asarray(Image.alpha_composite(white, image.convert("RGBA")).convert("RGB"))
        else:
            pixels = np.asarray(image.convert("RGB"))
        pixels = upright(pixels, image.getexif().get(0x0112, 1))
    height, width = size
    if keeps_proportions:
        scale = min(1.0, height / pixels.shape[0], width / pixels.shape[1])
        if (round(scale * pixels.shape[0]), round(scale * pixels.shape[1])) != (height, width):
            raise ValueError(f"{path}: this model takes images of {height} x {width} pixels")
    resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def deep_values(image: Image.Image) -> "tuple[Any, int | None]":
    """Values of deep grey, and their bits; None where the file does not say their range."""
    values: Any = np.asarray(image)
    bits = None
    if image.format == "TIFF":
        tags: Any = image.getexif()  # a TIFF's own tags
        stored = tags.get(258, 0)
        stored = stored[0] if isinstance(stored, tuple) else stored
        bits = stored if stored in (12, 16) else None
        if bits and values.dtype == np.uint16 and tags.get(262) == 0:
            values = (2**bits - 1) - values  # white is zero
    elif image.mode != "F":  # 16-bit PNG and PGM
        bits = 16
    return values, bits


def to_8_bit(values: Any, bits: "int | None", path: str) -> Any:
    """Deep values as uint8: by their bits, else by the smallest usual range that holds them."""
    if bits is not None:
        if values.min() < 0:
            raise ValueError(f"{path}: holds negative values: shift and scale them")
        top = 2**bits - 1
        return ((values.astype(np.uint32) * 255 + top // 2) // top).astype(np.uint8)
    floats = values.dtype.kind == "f"
    finite = values[np.isfinite(values)] if floats else values
    if not finite.size:
        raise ValueError(f"{path}: holds no finite value")
    high = float(finite.max())
    ranges = ((1.0,) if floats else ()) + (255.0, 65535.0, 2.0**32 - 1)
    place = next((i for i, r in enumerate(ranges) if high <= r * (1.25 if floats else 1)), None)
    if place is None or (place and high < ranges[place] / 16):
        raise ValueError(f"{path}: holds values up to {high:.6g}: scale them to 0..255")
    if float(finite.min()) < -ranges[place] / 4:
        raise ValueError(f"{path}: holds negative values: shift and scale them")
    scaled = np.nan_to_num(np.maximum(values, 0) * (255.0 / ranges[place]), nan=0.0, posinf=255.0)
    return np.clip(scaled, 0, 255).round().astype(np.uint8)


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, 3) pixels turned by their EXIF orientation, 1 to 8."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


if __name__ == "__main__":
    main(*sys.argv[1:])
