"""Pure array functions: attention variants, layers, measures. No Flax, no config, no I/O."""
