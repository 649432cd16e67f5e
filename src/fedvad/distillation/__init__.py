"""Small backbones distilled from larger ones (DFMSD)."""
