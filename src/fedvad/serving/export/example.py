"""Score images with a model that fedvad exported: python example.py MODEL IMAGE...

MODEL is model.onnx or model.xml. Needs numpy, pillow, and onnxruntime or openvino; not fedvad.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


def main(model: str, *images: str) -> None:
    """Write score and decision of each image."""
    side = json.loads(Path(model + ".json").read_text(encoding="utf-8"))["input"]["size"]
    batch = np.stack([read(path, side) for path in images])
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


def read(path: str, side: int) -> np.ndarray:
    """One image file as the uint8 (side, side, 3) RGB that the model takes."""
    upright = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    return np.asarray(upright.resize((side, side), Image.Resampling.BILINEAR))


if __name__ == "__main__":
    main(*sys.argv[1:])
