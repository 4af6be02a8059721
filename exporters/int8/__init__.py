"""int8: products of integers, calibrated on images, in float32 where they lose too much."""
