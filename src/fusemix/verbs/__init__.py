"""Verbs of the command line about data, one module each: parse, call, print. `cli` knows their names."""
