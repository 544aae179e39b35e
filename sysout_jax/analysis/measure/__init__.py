"""How large they are, how they come about, and how measures vary over layers, steps and seeds."""
