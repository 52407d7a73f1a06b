"""Data sets: generated, or read from the user's files; never downloaded."""
