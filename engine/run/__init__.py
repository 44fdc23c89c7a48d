"""Runs: a recipe carried out stage by stage in one folder, resumable at any moment."""
