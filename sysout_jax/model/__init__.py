"""One decoder, driven by one frozen config, with a named tap at every block output."""
