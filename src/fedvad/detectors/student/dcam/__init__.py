"""DCAM: imitation with attention."""
