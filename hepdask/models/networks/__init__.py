"""Networks, one file an architecture; importing them does not import TensorFlow, building one does."""
