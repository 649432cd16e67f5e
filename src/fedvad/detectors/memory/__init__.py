"""Detectors with a memory of normal patches."""
