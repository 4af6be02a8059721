"""fp16 and bf16: the graph computed in 16 bits, in float32 where it needs it."""
