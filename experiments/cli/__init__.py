"""What every command shares: flags, a run's directory and its end, the grid of cells, presets."""
