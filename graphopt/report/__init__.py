"""One JSON document with a versioned schema; everything else is rendered from it."""
