"""The sides of a comparison, each for an interpreter of its own; `serve.py` is the script. Nothing imports these files."""
