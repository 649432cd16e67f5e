"""AAND: an amplified teacher and a student of it."""
