"""From evaluations to what a person reads."""
