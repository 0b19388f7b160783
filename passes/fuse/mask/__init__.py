"""Attention masks are filled with a milder number."""
