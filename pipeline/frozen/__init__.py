"""Networks that nothing trains: which one a recipe comes to, where its weights are, and what stands in for it."""
