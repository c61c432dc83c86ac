"""Policies to compare with: the order other engines serve in, each at its best setting."""
