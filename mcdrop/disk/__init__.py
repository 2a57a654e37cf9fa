"""A model on disk: a folder that holds no code, written whole or not at all, read without evaluating anything."""
