"""Suites of methods x sets x seeds under one protocol."""
