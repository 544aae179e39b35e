"""What stands in the record of each command, and how it is found there: no drawing, no verdict."""
