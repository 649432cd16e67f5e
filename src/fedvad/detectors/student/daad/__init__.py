"""Divide and assemble: maps rebuilt from block-wise memories."""
