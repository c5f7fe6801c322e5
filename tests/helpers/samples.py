"""The sample files that most tests read."""

#: Events and seed of each file.
SAMPLES = {"ttbar": (70, 11), "wjets": (60, 12), "qcd": (50, 13)}
