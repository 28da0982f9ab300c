"""One module per schema change; each names the one before it."""
