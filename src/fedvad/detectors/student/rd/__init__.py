"""Reverse distillation."""
