"""Examining a machine: facts are gathered first, what is wrong with them is decided by pure functions."""
