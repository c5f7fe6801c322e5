"""Data-parallel training: the loop of a rank, and the engines that take a network through batches."""
