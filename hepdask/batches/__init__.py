"""From the store to batches: which events, in which order, read ahead of those who train on them."""
