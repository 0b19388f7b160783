"""Conv and pools pad for themselves."""
