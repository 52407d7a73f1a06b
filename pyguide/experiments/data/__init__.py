"""The data of the experiments: generated, or read from the user's files; never downloaded."""
