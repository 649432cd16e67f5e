"""Drawn images: the cloth of the demo with its flaws, and procedural fields."""
