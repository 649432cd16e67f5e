"""A detector from sums alone: no row, patch or image is behind any number that leaves a site."""
