"""What `python -m exporters.triton` is made of: its arguments, the configuration it writes, the repository it fills."""
