"""What a person or Prometheus can see of a cluster and of what runs on it."""
