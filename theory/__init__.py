"""The statements on systematic outliers, each with the program that verifies it."""
