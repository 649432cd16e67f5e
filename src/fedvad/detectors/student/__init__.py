"""Detectors whose student imitates a frozen teacher."""
