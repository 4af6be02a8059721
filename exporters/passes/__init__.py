"""Optimisations of an exported graph, each a small pass: what it requires, what it ensures, how often it applied."""
