"""Claims over records: what a claim is, and the claims of each kind of record."""
