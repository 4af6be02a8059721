"""What `python -m runtime` does: listing, explaining and examining, in plain text or JSON, without torch."""
