"""A transformer's stream is kept in two dimensions."""
