"""What a user asks for, one file a verb; the Python API calls these."""
