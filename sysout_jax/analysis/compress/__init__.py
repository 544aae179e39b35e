"""What they cost under quantisation and pruning."""
