"""What the commands do, callable from Python: each a function from settings to a result."""
