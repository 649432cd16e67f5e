"""Exports: a run as one ONNX or OpenVINO model, from uint8 pixels to score, map and decision."""
