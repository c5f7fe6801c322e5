"""A trained model as a function of events."""
