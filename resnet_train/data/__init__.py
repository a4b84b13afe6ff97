"""Data sets as arrays, and the batches made of them."""
