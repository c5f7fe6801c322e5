"""Searching for the best settings of a model by cross-validation.

`search_space` says what may be tried, `study` decides what to try and remembers what came of it, `trial` tries
it. The step `tune` brings them to a cluster.
"""
