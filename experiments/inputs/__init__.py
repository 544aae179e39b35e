"""What a command reads: the chosen model, text to evaluate on, room on disk, training states."""
