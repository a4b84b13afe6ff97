"""Run folders: their files, their one writer, their checkpoints, and how a run is resumed."""
