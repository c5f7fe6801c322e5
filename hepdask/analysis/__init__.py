"""What a row of the sample is: selection, particles and features. `topology` is the published analysis."""
