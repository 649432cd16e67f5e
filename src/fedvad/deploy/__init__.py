"""A federation of real machines: certificates and keys, the server, the sites, a run."""
