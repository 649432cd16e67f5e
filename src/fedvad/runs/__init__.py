"""A training run: its configuration, its method, its result."""
