"""The sides of a comparison, for interpreters of their own; `serve.py` is the script. Nothing imports these files."""
