"""Building artifacts: registered backbone -> exported graph -> verified -> published.

The command is `python -m exporters.build`; `exporters.pipeline.build` is the same for one backbone, in this process.
"""
