"""Where records go: the terminal, CSV files, TensorBoard."""
