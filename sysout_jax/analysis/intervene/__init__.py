"""What the loss says when they are edited, dosed or replaced by an explicit form."""
