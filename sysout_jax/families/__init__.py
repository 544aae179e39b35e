"""Published model families: one file each, a config map and a tensor map, both data."""
