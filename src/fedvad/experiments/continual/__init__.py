"""A stream of tasks, learned one after another by several methods."""
