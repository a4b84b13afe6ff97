"""The console scripts, one module each: options in, text or JSON out."""
