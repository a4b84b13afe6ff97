"""The console scripts: one thin module each."""
