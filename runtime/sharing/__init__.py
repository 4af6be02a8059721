"""Artifacts in a repository of the Hugging Face hub: pulled into a store, or fetched by load_model as it needs them.

The repository mirrors a store: `<model>/manifest.json` and the files that it lists, with a model card beside them.
"""
