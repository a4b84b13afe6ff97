"""Pictures of what a network sees and where it is wrong."""
