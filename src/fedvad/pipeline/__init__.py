"""The five verbs as functions: what the command line calls, and what scripts call."""
