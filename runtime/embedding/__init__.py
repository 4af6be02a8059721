"""Embedding millions of images: what is read, decoded, embedded and written."""
