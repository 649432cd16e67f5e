"""Images scored as they arrive, with a log that outlives every kill, and what changed."""
