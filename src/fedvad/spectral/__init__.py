"""Hyperspectral scenes: reading cubes of many bands, detectors of odd pixels, and their figures."""
