"""Memory and time of machines that are not at hand, by compiling for them."""
