"""What a network sees and where it is wrong: pictures, and a self-contained page."""
