"""Adaptive memories with self-supervised views."""
