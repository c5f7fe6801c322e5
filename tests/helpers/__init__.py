"""What tests of several packages share: events, stores, servers, ranks, and independent truths."""
