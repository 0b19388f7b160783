"""The conformance suite and builders for testing passes."""
