"""Vocabularies that ship with the package, one folder each, and the program that made them."""
