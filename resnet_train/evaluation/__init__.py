"""Evaluating a model: every image once, and the metrics computed from it."""
