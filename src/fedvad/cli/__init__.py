"""The command line. Nothing here is slow to import."""

import warnings

# typer imports what newer versions of click call deprecated; with PYTHONWARNINGS=error no verb
# would start
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import typer  # noqa: F401
