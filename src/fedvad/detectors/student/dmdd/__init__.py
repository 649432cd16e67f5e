"""DMDD: decoupled branches and dual losses."""
