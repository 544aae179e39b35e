"""Where outliers are: scans, detectors over text, positions, relations between the three kinds."""
